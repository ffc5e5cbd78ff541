"""Files that come with answers: their contents are written to a file or to standard output."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vgpud.cli.output_file import write_file
from vgpud.cli.stdout import write_bytes
from vgpud.errors import HostError
from vgpud.publish import Json
from vgpud.unix.fd import Fd

CHUNK: Final = 1 << 20
"""Bytes that are copied at a time: a blob may be larger than the memory that ctl should use."""


def save(fd: Fd, answer: Json, path: Path | None) -> int:
    """Write a file's contents to `path`, or to stdout if it is None; return their size.

    `answer` may have the range in the file, as `fd_offset` and `size`; else it is the whole file.
    Raises HostError if the file can't be read or written.
    """
    offset, size = _range(fd, answer)
    if path is not None:
        write_file(path, _contents(fd, offset, size))
        return size
    for chunk in _contents(fd, offset, size):
        write_bytes(chunk)
    return size


def _range(fd: Fd, answer: Json) -> tuple[int, int]:
    match answer:
        case {"fd_offset": int(offset), "size": int(size)}:
            return offset, size
        case {"size": int(size)}:
            return 0, size
    return 0, os.fstat(fd.fileno()).st_size


def _contents(fd: Fd, offset: int, size: int) -> Iterator[bytes]:
    try:
        # Not by read(2), which a dma-buf does not have. Read-only, because the file may be sealed.
        length = offset + size
        with mmap.mmap(fd.fileno(), length, access=mmap.ACCESS_READ) as view:
            for start in range(offset, length, CHUNK):
                yield view[start : min(start + CHUNK, length)]
    except (OSError, ValueError) as error:  # ValueError: the file is shorter than it should be
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise HostError("reading the file that came with the answer", cause) from error
