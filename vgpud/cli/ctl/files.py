"""Files that come with answers: their contents to a file of the user's, or to standard output.

Owns no descriptor but that of the file that it writes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vgpud.cli.stdout import pour
from vgpud.errors import HostError
from vgpud.publish import Json
from vgpud.unix.fd import Fd

CHUNK: Final = 1 << 20
"""Bytes at a time: what is in a file for blobs may be larger than what we want of memory."""


def save(fd: Fd, answer: Json, path: Path | None) -> int:
    """Write what the answer is about to `path`, or to stdout if it is None; returns its size.

    `answer` may say where that is, as `fd_offset` and `size`; else it is the whole file. Raises
    HostError if it can't be read or written.
    """
    offset, size = _place(fd, answer)
    if path is None:
        for chunk in _contents(fd, offset, size):
            pour(chunk)
        return size
    try:
        with path.open("wb") as file:
            for chunk in _contents(fd, offset, size):
                file.write(chunk)
    except OSError as error:
        raise HostError(f"writing {path}", error) from error
    return size


def _place(fd: Fd, answer: Json) -> tuple[int, int]:
    match answer:
        case {"fd_offset": int(offset), "size": int(size)}:
            return offset, size
        case {"size": int(size)}:
            return 0, size
    return 0, os.fstat(fd.fileno()).st_size


def _contents(fd: Fd, offset: int, size: int) -> Iterator[bytes]:
    try:
        # Not by read(2), which a dma-buf does not have. Only to look at: it may be sealed.
        length = offset + size
        with mmap.mmap(fd.fileno(), length, access=mmap.ACCESS_READ) as view:
            for start in range(offset, length, CHUNK):
                yield view[start : min(start + CHUNK, length)]
    except (OSError, ValueError) as error:  # ValueError: the file is shorter than it should be
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise HostError("reading the file that came with the answer", cause) from error
