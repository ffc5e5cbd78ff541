"""Connections that are refused: their peers notice at once, whatever they have put into them."""

from __future__ import annotations

import socket
import threading
from typing import Final

from vgpud.unix.closer import Closer
from vgpud.unix.received_fd import close_socket

MAX_CLOSING: Final = 16
"""Refused connections that may take long to close, each of which has a thread and a descriptor."""


class Refusals:
    """The refused connections that are not closed yet.

    Each is closed in a thread of its own: one that takes long keeps no other one waiting.
    """

    def __init__(self, limit: int = MAX_CLOSING) -> None:
        self._places = threading.Semaphore(limit)

    def refuse(self, connection: socket.socket) -> bool:
        """End a connection, and close it soon.

        Returns False, and does nothing, if as many as the limit are not closed yet.
        """
        if not self._places.acquire(blocking=False):
            return False
        closer = Closer()
        close_socket(connection, closer)
        closer.run(self._places.release)
        return True
