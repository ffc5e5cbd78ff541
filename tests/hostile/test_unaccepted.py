"""Connections that are not served, into which a file was put whose closing waits for its peer."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.hostile.siege import Bystander, Siege, connected, rogue_front_end
from tests.support.silent_files import lingering_socket
from tests.support.until import until

LINGER = 20
LONGEST_WAIT = 0.5
REFUSED = 5.0
"""Seconds within which a front-end notices that the device is taken: two, and some patience."""


@pytest.fixture
def own_siege() -> Iterator[Siege]:
    """A daemon of this test's own, whose device `a` is taken."""
    siege = Siege()
    try:
        with closing(rogue_front_end(siege.socket("a"))):
            yield siege
    finally:
        siege.kill()


@contextmanager
def lingering_connection(siege: Siege, seconds: int = LINGER) -> Iterator[None]:
    """A connection that was left, with the last descriptor of a lingering socket in it."""
    with lingering_socket(seconds) as number:
        with connected(siege.socket("a")) as sock:
            socket.send_fds(sock, [b"x"], [number])
            os.close(number)
        yield


def test_a_stop(own_siege: Siege) -> None:
    """One has been accepted and waits for the device, and the other has not."""
    with lingering_connection(own_siege), lingering_connection(own_siege):
        time.sleep(0.2)
        own_siege.daemon.terminate()
        assert own_siege.daemon.wait(LINGER / 2) == 0


def test_a_reload_that_removes_the_device(own_siege: Siege) -> None:
    config = own_siege.daemon.config
    with (
        lingering_connection(own_siege),
        lingering_connection(own_siege),
        Bystander(own_siege.socket("b")) as bystander,
    ):
        head, first, rest = config.read_text().partition('\n[[device]]\nname = "a"')
        assert first
        config.write_text(head + rest[rest.index("\n[[device]]") :])
        own_siege.daemon.send_signal(signal.SIGHUP)
        until(lambda: not own_siege.socket("a").exists())
        time.sleep(0.2)
        own_siege.assert_serving("poor")
    assert bystander.worst < LONGEST_WAIT


def test_others_that_are_refused(own_siege: Siege) -> None:
    with lingering_connection(own_siege):
        for _ in range(2):
            with connected(own_siege.socket("a")) as sock:
                sock.settimeout(REFUSED)
                assert sock.recv(1) == b""
    until(lambda: own_siege.daemon.log.count("front-end refused") == 3)
