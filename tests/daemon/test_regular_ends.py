"""Ends of sessions and channels that are no faults, however busy the connection is: no warnings."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.front_end import FrontEnd
from tests.support.process import DaemonProcess, config_toml
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.requests import encode_request


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    directory = tmp_path_factory.mktemp("ends")
    with DaemonProcess(directory, config_toml(directory)) as started:
        yield started


def _leave(fe: FrontEnd) -> None:
    """Nothing is under way."""


def _leave_with_answers_unread(fe: FrontEnd) -> None:
    for _ in range(20):
        fe.send(m.GetFeatures())
    time.sleep(0.05)


def _leave_while_answers_come(fe: FrontEnd) -> None:
    fe.send_bytes(encode_request(m.GetFeatures()) * 2000)


def _stop_with_the_display_unread(fe: FrontEnd) -> None:
    """As QEMU stops its vhost-user-gpu: it closes the display, and then stops the rings."""
    fe.gpu_set_socket().close()  # the question for the display's features is in it by now
    fe.stop()
    assert fe.ask(m.GetFeatures())


def _close_the_display_before_it_is_used(fe: FrontEnd) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        fe.tell(m.GpuSetSocket(), [theirs.fileno()])
    assert fe.ask(m.GetFeatures())


def _close_the_back_end_channel_first(fe: FrontEnd) -> None:
    assert fe.backend._sock is not None
    fe.backend._sock.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    assert fe.ask(m.GetFeatures())


ENDS: dict[str, Callable[[FrontEnd], None]] = {
    end.__name__.strip("_"): end
    for end in (
        _leave,
        _leave_with_answers_unread,
        _leave_while_answers_come,
        _stop_with_the_display_unread,
        _close_the_display_before_it_is_used,
        _close_the_back_end_channel_first,
    )
}


@pytest.mark.parametrize("name", ENDS)
def test_a_regular_end_is_no_warning(daemon: DaemonProcess, name: str) -> None:
    begin = len(daemon.log)
    fe = FrontEnd.connect(daemon.socket()).handshake()
    try:
        ENDS[name](fe)
    finally:
        fe.close()
    daemon.until(lambda: "front-end disconnected device=gpu0" in daemon.log[begin:])
    said = [line for line in daemon.log[begin:].splitlines() if " INFO " not in line]
    assert said == []


def test_a_front_end_that_only_looks_is_no_warning(daemon: DaemonProcess) -> None:
    begin = len(daemon.log)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket()))
    daemon.until(lambda: "front-end disconnected device=gpu0" in daemon.log[begin:])
    assert " WARNING " not in daemon.log[begin:]


def test_half_a_message_is_a_fault_still(daemon: DaemonProcess) -> None:
    begin = len(daemon.log)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket()))
        sock.sendall(encode_request(m.GetFeatures())[:7])
    daemon.until(lambda: "in the middle of a message" in daemon.log[begin:])
    assert " WARNING " in daemon.log[begin:]
