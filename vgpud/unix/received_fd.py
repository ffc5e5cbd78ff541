"""Descriptors that another process has sent."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.file_kind import FileKind, file_kind


class ReceivedFd(Fd):
    """The owner of a descriptor that another process has sent, of any kind of file.

    `close` never waits: `closer` closes what may take long.
    """

    __slots__ = ("_kind", "closer")

    def __init__(self, fd: int, closer: Closer) -> None:
        super().__init__(fd)
        self.closer = closer
        self._kind: FileKind | None = None

    @property
    def kind(self) -> FileKind:
        """The kind of file. Raises ValueError once the descriptor is closed or taken."""
        if self._kind is None:
            self._kind = file_kind(self)
        return self._kind

    def close(self) -> None:
        """Close the descriptor, now or soon; a second call does nothing."""
        if self.closed:
            return
        if self.kind is FileKind.EVENTFD:
            super().close()
        else:
            self.closer.run(partial(_close, self.take()))


def _close(fd: int) -> None:
    with suppress(OSError):  # of its filesystem
        os.close(fd)
