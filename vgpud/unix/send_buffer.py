"""The size of a socket's send buffer. Source: socket(7), SO_SNDBUF and SO_SNDBUFFORCE."""

from __future__ import annotations

import socket
from typing import Final

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it


def set_send_buffer(sock: socket.socket, size: int) -> None:
    """Let a socket hold `size` bytes that the peer has not received, up to net.core.wmem_max.

    A process with CAP_NET_ADMIN can exceed that limit.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
