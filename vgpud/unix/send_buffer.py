"""How much a socket holds that its peer has not received yet. Source: socket(7), SO_SNDBUFFORCE."""

from __future__ import annotations

import socket
from typing import Final

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it


def set_send_buffer(sock: socket.socket, size: int) -> None:
    """Let a socket hold `size` unreceived bytes, or as many as net.core.wmem_max allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:  # only CAP_NET_ADMIN gets past net.core.wmem_max
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
