"""What kind of socket a descriptor is."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from vgpud.native.unix_socket import is_unix_stream


@pytest.mark.parametrize(
    ("family", "kind", "fit"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, True),
        (socket.AF_UNIX, socket.SOCK_DGRAM, False),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, False),
        (socket.AF_INET, socket.SOCK_STREAM, False),
        (socket.AF_INET, socket.SOCK_DGRAM, False),
    ],
)
def test_sockets(family: int, kind: int, fit: bool) -> None:
    with socket.socket(family, kind) as sock:
        assert is_unix_stream(sock.fileno()) is fit


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_a_file_is_no_socket(flags: int) -> None:
    number = os.open(__file__, flags)
    try:
        with pytest.raises(OSError) as caught:
            is_unix_stream(number)
    finally:
        os.close(number)
    assert caught.value.errno in {errno.ENOTSOCK, errno.EBADF}
