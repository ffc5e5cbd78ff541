"""Standard output and standard error: everything that the programs print goes through here.

Text that the terminal's encoding lacks is escaped, so that no name, picture of a table or argument
raises. A program has to know if its output could not be written; its errors may get lost.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Any, Final, NoReturn, TextIO

from vgpud.errors import HostError

_ELLIPSIS: Final = "…"


class ProgramParser(argparse.ArgumentParser):
    """A parser whose help, versions and errors are printed as everything else is."""

    failed = False
    """Whether the arguments are wrong, so that what is printed is an error."""

    def error(self, message: str) -> NoReturn:
        """Print how the program is used, and the error, to standard error; exit with status 2."""
        self.failed = True
        super().error(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        # Not by `file`: it is None for either stream, if that is closed.
        if message:
            write = write_error if self.failed else write_text
            write(message.removesuffix("\n"))


def write_text(text: str) -> None:
    """Print a text and flush it; raises HostError if stdout is closed or has no reader."""
    if sys.stdout is None:
        raise _closed()
    try:
        print(_encodable(text, sys.stdout), flush=True)
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


def write_error(text: str) -> None:
    """Print a text to standard error, if that takes it."""
    if sys.stderr is None:
        return
    try:
        print(_encodable(text, sys.stderr), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def ellipsis() -> str:
    """Return the mark for a line that is cut off, as stdout can show it."""
    can_be_shown = sys.stdout is not None and _encodable(_ELLIPSIS, sys.stdout) == _ELLIPSIS
    return _ELLIPSIS if can_be_shown else "..."


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _closed() -> HostError:
    # It was closed before this program started: print would discard the text silently.
    return HostError("standard output", OSError(errno.EBADF, os.strerror(errno.EBADF)))


def _lost(error: OSError) -> HostError:
    _discard(sys.stdout)
    return HostError("standard output", error)


def _discard(stream: TextIO) -> None:
    # Otherwise the interpreter would try to flush again at exit, and print another error.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
