"""Refused connections: their peers notice at once, and only so many wait to be closed."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from tests.support.silent_files import lingering_socket
from tests.support.until import until
from vgpud.unix.refusals import Refusals

LINGER = 2
AT_ONCE = 0.5


def test_one_that_takes_long_to_close() -> None:
    refusals = Refusals(limit=2)
    pairs = [socket.socketpair() for _ in range(4)]
    begin = time.monotonic()
    with lingering_socket(LINGER) as first, lingering_socket(LINGER) as second:
        for number, (_, theirs) in zip((first, second), pairs[1:], strict=False):
            socket.send_fds(theirs, [b"x"], [number])
            os.close(number)
        for ours, theirs in pairs[:3]:
            until(lambda one=ours: refusals.refuse(one), AT_ONCE)  # type: ignore[misc]
            theirs.settimeout(AT_ONCE)
            with suppress(ConnectionResetError):  # closed already, with what it has not read
                assert theirs.recv(1) == b""
        last, peer = pairs[3]
        assert not refusals.refuse(last)
        assert last.send(b"x") == 1
        assert time.monotonic() - begin < LINGER
        until(lambda: refusals.refuse(last), 3 * LINGER)
        assert peer.recv(2) == b"x"
        assert peer.recv(2) == b""
    for _, theirs in pairs:
        theirs.close()
