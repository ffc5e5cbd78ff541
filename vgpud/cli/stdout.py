"""Standard output, for programs that have to know whether what they said can have been read."""

from __future__ import annotations

import errno
import os
import sys

from vgpud.errors import HostError


def say(text: str) -> None:
    """Print on stdout, now; raises HostError if nobody can read it."""
    if sys.stdout is None:
        raise _closed()
    try:
        print(text, flush=True)
    except OSError as error:
        raise _lost(error) from error


def pour(data: bytes) -> None:
    """Write these bytes to stdout, now; raises HostError if nobody can read them."""
    if sys.stdout is None:
        raise _closed()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _lost(error) from error


def is_terminal() -> bool:
    """Whether people look at stdout itself."""
    return sys.stdout is not None and sys.stdout.isatty()


def _closed() -> HostError:
    # Closed before we were started: print would say nothing, silently.
    return HostError("standard output", OSError(errno.EBADF, os.strerror(errno.EBADF)))


def _lost(error: OSError) -> HostError:
    # Else the interpreter would try, and complain, once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return HostError("standard output", error)
