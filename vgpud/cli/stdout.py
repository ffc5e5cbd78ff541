"""Standard output with errors: a program has to know if its output could not be written."""

from __future__ import annotations

import errno
import os
import sys

from vgpud.errors import HostError


def write_text(text: str) -> None:
    """Print a text and flush it; raises HostError if stdout is closed or has no reader."""
    if sys.stdout is None:
        raise _closed()
    try:
        print(text, flush=True)
    except OSError as error:
        raise _lost(error) from error


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout and flush them; raises HostError if it is closed or has no reader."""
    if sys.stdout is None:
        raise _closed()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _lost(error) from error


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _closed() -> HostError:
    # It was closed before this program started: print would discard the text silently.
    return HostError("standard output", OSError(errno.EBADF, os.strerror(errno.EBADF)))


def _lost(error: OSError) -> HostError:
    # Otherwise the interpreter would try to flush again at exit, and print another error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return HostError("standard output", error)
