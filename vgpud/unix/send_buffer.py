"""A socket's send buffer: its size, and what is in it.

Source: socket(7), SO_SNDBUF and SO_SNDBUFFORCE; unix(7), SIOCOUTQ.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios

from vgpud.native import unix_socket


def set_send_buffer(sock: socket.socket, size: int) -> None:
    """Let a socket hold `size` bytes that the peer has not received, up to net.core.wmem_max.

    A process with CAP_NET_ADMIN can exceed that limit.
    """
    unix_socket.set_send_buffer(sock.fileno(), size)


def all_received(sock: socket.socket) -> bool:
    """Return whether the peer of a unix socket has received every byte that was sent to it."""
    memory = array.array("i", [0])  # of the kernel, for bytes that were not received
    fcntl.ioctl(sock, termios.TIOCOUTQ, memory)
    return memory[0] == 0
