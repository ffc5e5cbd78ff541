"""The micro-VM as a vhost-user front-end: with the real daemon, and with back-ends gone wrong."""

from __future__ import annotations

import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.microvm.kvm import needs_kvm
from tests.support.back_end_process import BackEndProcess
from tests.support.back_end_requests import receive
from vgpud.coherency.slot_policy import GuestPat, Layout
from vgpud.errors import HostError, PeerError
from vgpud.gpu.wire.protocol import MapInfo
from vgpud.microvm.front_end import GUEST_FEATURES, PROTOCOL_FEATURES, FrontEnd
from vgpud.microvm.guest_code import GuestFailedError
from vgpud.microvm.machine import Machine
from vgpud.microvm.service import configuration
from vgpud.microvm.vmm import Outcome, run_front_end
from vgpud.vhost.wire.protocol import F_PROTOCOL_FEATURES, FrontEndRequest
from vgpud.vhost.wire.replies import (
    ConfigReply,
    EmptyReply,
    MessageReply,
    ShmemConfig,
    U64Reply,
    encode_reply,
)

pytestmark = needs_kvm

WIDTH, HEIGHT = 24, 10


def drawn(rounds: int) -> NDArray[np.int64]:
    """The last picture as dwords, by what guest_front_end.c says that it draws."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    colour = x << 18 | y << 10 | (x ^ y) << 2
    disc = (2 * x - WIDTH) ** 2 + (2 * y - HEIGHT) ** 2 < HEIGHT * HEIGHT // 2
    picture: NDArray[np.int64] = np.where(disc, ~colour, colour)
    return (picture ^ ((rounds - 1) * 0x505050)) & 0xFFFFFF


def check_pictures(outcome: Outcome, rounds: int) -> None:
    """What guest and device did, against a picture of our own."""
    expected = drawn(rounds).astype("<u4")
    assert np.array_equal(outcome.seen.view("<u4")[..., 0], expected)
    last = outcome.rounds[-1]
    assert last.written.crc == zlib.crc32(expected.tobytes()) == last.dma.picture_crc
    expected[-1] = 0x208040 + rounds - 1
    assert np.array_equal(outcome.copied.view("<u4")[..., 0], expected)
    assert zlib.crc32(expected.tobytes()) == last.dma.copy_crc
    assert len(outcome.rounds) == rounds
    assert all(round_.dma.holds for round_ in outcome.rounds)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(
    ("guest_pat", "map_info", "bits"),
    [(GuestPat.HONORED, MapInfo.WC, 0b01), (GuestPat.IGNORED, MapInfo.CACHED, 0b00)],
)
def test_the_four_steps_with_a_daemon(
    layout: Layout, guest_pat: GuestPat, map_info: MapInfo, bits: int
) -> None:
    rounds = 3
    with BackEndProcess(configuration(guest_pat, layout)) as back_end:
        outcome = run_front_end(back_end.connection, width=WIDTH, height=HEIGHT, rounds=rounds)
        assert back_end.end() == 0, back_end.log
        assert "Traceback" not in back_end.log
    check_pictures(outcome, rounds)
    assert [mapped.map_info for mapped in outcome.mapped] == [map_info] * 3
    assert [mapped.entry >> 3 & 3 for mapped in outcome.mapped] == [bits] * 3
    sizes = [slot.size for slot in outcome.slots]
    assert sizes == ([1 << 20] if layout is Layout.WINDOW else [4096] * 3)
    # Five commands for each blob and two for the context, then one each round.
    assert outcome.chains == (3 * 5 + 2 + rounds, 1)


def test_a_slot_that_kvm_refuses_is_the_guests_error_and_the_daemon_goes_on() -> None:
    unknown_flag = 1 << 4  # guest_memfd's neighbour: no kernel has it
    with BackEndProcess(configuration(GuestPat.IGNORED)) as back_end:
        with pytest.raises(GuestFailedError, match="answered 0x1200 to command 0x208"):
            run_front_end(back_end.connection, slot_flags=unknown_flag)
        assert back_end.end() == 0
        assert "Traceback" not in back_end.log


def test_a_daemon_that_dies_is_noticed() -> None:
    with BackEndProcess(configuration(GuestPat.IGNORED)) as back_end:
        timer = threading.Timer(0.0, os.kill, (back_end.pid, 9))
        timer.start()
        with pytest.raises(PeerError):
            run_front_end(back_end.connection, rounds=1000)
        timer.join()
        assert back_end.end() == -9


# -- Back-ends of our own --------------------------------------------------------------------------

OFFERED = GUEST_FEATURES | F_PROTOCOL_FEATURES
Answer = Callable[[FrontEndRequest], MessageReply | bytes | None]


def good(request: FrontEndRequest) -> MessageReply:
    """A back-end that offers what is needed, and agrees to all."""
    match request:
        case FrontEndRequest.GET_FEATURES:
            return U64Reply(OFFERED)
        case FrontEndRequest.GET_PROTOCOL_FEATURES:
            return U64Reply(PROTOCOL_FEATURES)
        case FrontEndRequest.GET_QUEUE_NUM:
            return U64Reply(2)
        case FrontEndRequest.GET_SHMEM_CONFIG:
            return ShmemConfig((0, 1 << 20))
        case FrontEndRequest.GET_CONFIG:
            return ConfigReply(0, 0, bytes(16))
        case _:
            return U64Reply(0)


def instead(request: FrontEndRequest, reply: MessageReply | bytes | None) -> Answer:
    """A good back-end, but for one request; None is no answer at all."""
    return lambda asked: reply if asked is request else good(asked)


@contextmanager
def scripted(answer: Answer) -> Iterator[socket.socket]:
    """A back-end that answers as told, from a thread; hangs up when it sends no bytes."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        silent = {FrontEndRequest.SET_PROTOCOL_FEATURES, FrontEndRequest.SET_OWNER}
        kept: list[int] = []  # its channel among them, which must not look closed
        with theirs:
            while True:
                try:
                    data, fds = receive(theirs, 4096)
                except ConnectionError:
                    data, fds = b"", []
                kept += fds
                replies = []
                if not data:
                    break
                while data:
                    request = FrontEndRequest(int.from_bytes(data[:4], "little"))
                    data = data[12 + int.from_bytes(data[8:12], "little") :]
                    reply = None if request in silent else answer(request)
                    raw = encode_reply(request, reply) if isinstance(reply, MessageReply) else reply
                    replies.append(raw)
                if b"" in replies:
                    break
                theirs.sendall(b"".join(raw for raw in replies if raw))
        for fd in kept:
            os.close(fd)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(5)
        assert not thread.is_alive()


Req = FrontEndRequest


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (instead(Req.GET_FEATURES, U64Reply(OFFERED & ~1)), "does not offer features 0x1"),
        (instead(Req.GET_PROTOCOL_FEATURES, U64Reply(0)), "does not offer"),
        (instead(Req.GET_QUEUE_NUM, U64Reply(1)), "has 1 queues"),
        (instead(Req.GET_SHMEM_CONFIG, ShmemConfig(())), "no host-visible window"),
        (instead(Req.GET_CONFIG, EmptyReply()), "answered GET_CONFIG with EmptyReply"),
        (instead(Req.SET_MEM_TABLE, U64Reply(1)), "refused SET_MEM_TABLE"),
        (instead(Req.GET_FEATURES, b""), "hung up"),
        (instead(Req.SET_VRING_KICK, b""), "hung up"),
        (instead(Req.GET_FEATURES, bytes(12)), "begins with"),
        (instead(Req.GET_FEATURES, b"\1\0\0\0\5\0\0\0\3\0\0\0abc"), "payload of 3 bytes"),
    ],
)
def test_a_back_end_that_will_not_do_is_refused(answer: Answer, error: str) -> None:
    with scripted(answer) as connection, pytest.raises(PeerError, match=error):
        run_front_end(connection)


@pytest.mark.parametrize("request_", [Req.GET_FEATURES, Req.SET_VRING_ENABLE])
def test_a_back_end_that_does_not_answer_is_given_up(request_: Req) -> None:
    def connect() -> None:
        with (
            scripted(instead(request_, None)) as connection,
            Machine.open() as machine,
            FrontEnd(connection, machine, patience=0.2) as vmm,
        ):
            vmm.introduce()
            vmm.start()

    with pytest.raises(HostError, match="timed out"):
        connect()


def test_a_device_that_does_nothing_is_given_up() -> None:
    with (
        scripted(good) as connection,
        Machine.open() as machine,
        FrontEnd(connection, machine, patience=0.2) as vmm,
    ):
        vmm.introduce()
        vmm.start()
        with pytest.raises(HostError, match=r"waiting for the device for 0\.2 s.*timed out"):
            vmm.wait()
