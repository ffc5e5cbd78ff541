"""A front-end that is broken or malicious: bad messages, bad descriptors, rings at bad moments."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.gpu import driver
from tests.hostile.siege import (
    MIB,
    Bystander,
    RogueRing,
    Siege,
    assert_hung_up,
    command,
    entries,
    front_end,
)
from tests.support.front_end import FrontEnd
from tests.support.ring_driver import GuestRam
from tests.support.silent_files import lingering_socket, silent_filesystem
from tests.support.until import until
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.protocol import ResourceId, ResponseType
from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.protocol import HEADER, FrontEndRequest, ProtocolFeature
from vgpud.vhost.wire.requests import Request, encode_request

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""No shrinking: a daemon that hangs costs seconds an example."""

LONGEST_WAIT = 0.5
GIB = 1 << 30


# -- Messages --------------------------------------------------------------------------------------

Message = tuple[bytes, int]  # what is sent, and with how many fds


def _raw(request: int, flags: int, payload: bytes, size: int | None = None) -> bytes:
    return HEADER.pack(request, flags, len(payload) if size is None else size) + payload


BAD_MESSAGES: dict[str, Message] = {
    "version 2": (_raw(FrontEndRequest.GET_FEATURES, 2, b""), 0),
    "a reply": (_raw(FrontEndRequest.GET_FEATURES, 5, b""), 0),
    "request 0": (_raw(0, 1, b""), 0),
    "unknown request": (_raw(999, 1, b""), 0),
    "not for a GPU": (_raw(FrontEndRequest.NET_SET_MTU, 1, bytes(8)), 0),
    "2 GiB announced": (_raw(FrontEndRequest.SET_MEM_TABLE, 1, b"", 1 << 31), 0),
    "9 regions": (_raw(FrontEndRequest.SET_MEM_TABLE, 1, bytes(8 + 9 * 32)), 9),
    "count without regions": (_raw(FrontEndRequest.SET_MEM_TABLE, 1, b"\x08" + bytes(7)), 8),
    "region without fd": (encode_request(m.SetMemTable((m.MemRegion(Gpa(0), 1, Uva(0), 0),))), 0),
    "two fds for one": (encode_request(m.SetVringKick(0, True)), 2),
    "fd for none": (encode_request(m.GetFeatures()), 1),
    "32 fds": (encode_request(m.GetFeatures()), 32),
    "unoffered features": (encode_request(m.SetFeatures(1 << 63)), 0),
    "unoffered protocol features": (
        encode_request(m.SetProtocolFeatures(ProtocolFeature.INBAND_NOTIFICATIONS)),
        0,
    ),
    "queue 2": (encode_request(m.SetVringNum(2, 64)), 0),
    "queue 2**32-1": (encode_request(m.GetVringBase(0xFFFFFFFF)), 0),
    "fds, then nothing": (encode_request(m.SetOwner())[:5], 8),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_bad_message_ends_the_session_with_one_line(siege: Siege, name: str) -> None:
    data, count = BAD_MESSAGES[name]
    with front_end(siege) as ring, Path("/dev/null").open("rb") as null:
        socket.send_fds(ring.fe.sock, [data], [null.fileno()] * count)
        if len(data) < HEADER.size:
            ring.fe.sock.shutdown(socket.SHUT_WR)
        assert_hung_up(ring.fe)
        until(lambda: len(siege.warnings) > 0, 2)
    assert len(siege.warnings) == 1


def test_config_space_beyond_its_end(siege: Siege) -> None:
    """The offset is the front-end's to choose; it must not cost what it says."""
    with front_end(siege) as ring:
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            ring.fe.ask(m.GetConfig(0xFFFFFF00, 200, 0))
        with contextlib.suppress(ConnectionError):
            ring.fe.ask(m.GetConfig(MIB, 200, 0))
        assert siege.peak < 16 * MIB
        assert time.monotonic() - begin < LONGEST_WAIT


def test_a_flood_of_messages_does_not_keep_other_devices_waiting(siege: Siege) -> None:
    messages = encode_request(m.SetOwner()) * 1000
    with front_end(siege) as ring, Bystander(siege.socket("b")) as bystander:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            ring.fe.sock.sendall(messages)
        assert ring.fe.ask(m.GetFeatures())
    assert bystander.worst < LONGEST_WAIT


def test_a_flood_of_bad_rings_does_not_fill_the_log(siege: Siege) -> None:
    with front_end(siege) as ring:
        bad = encode_request(m.SetVringAddr(0, 0, Uva(16), Uva(16), Uva(16), Gpa(0)))
        ring.fe.sock.sendall(bad * 1000)
        ring.fe.ask(m.GetFeatures())
    assert len(siege.warnings) < 50


def test_a_front_end_that_does_not_read(siege: Siege) -> None:
    with front_end(siege) as ring, Bystander(siege.socket("b")) as bystander:
        ring.fe.sock.settimeout(0.3)
        questions = encode_request(m.GetShmemConfig()) * 10_000  # of 2 KiB of answer each
        with pytest.raises(TimeoutError):
            ring.fe.sock.sendall(questions * 10)
        assert siege.peak < 16 * MIB
    assert bystander.worst < LONGEST_WAIT


@settings(
    max_examples=20,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_messages_end_in_order(siege: Siege, data: st.DataObject) -> None:
    """Legal ones in any order, with odd numbers in them, and at last perhaps a mangled one."""
    index = st.integers(0, 2)
    number = st.sampled_from([0, 1, 2, 16, 63, 64, 256, 4096, 32768, 65535, (1 << 32) - 1])
    address = st.one_of(number, st.integers(0, (1 << 64) - 1))
    kinds = st.one_of(
        st.builds(m.SetVringNum, st.integers(0, 1), number),
        st.builds(m.SetVringBase, st.integers(0, 1), number),
        st.builds(m.SetVringAddr, st.integers(0, 1), number, address, address, address, address),
        st.builds(m.SetVringEnable, st.integers(0, 1), st.booleans()),
        st.builds(m.GetVringBase, index),
        st.builds(m.GetConfig, st.integers(0, 4096), st.integers(0, 256), st.just(0)),
        st.builds(m.SetConfig, st.integers(0, 4096), st.just(0), st.binary(max_size=64)),
        st.sampled_from([m.ResetDevice(), m.SetOwner(), m.ResetOwner(), m.GetFeatures()]),
        st.sampled_from([m.SetBackendReqFd(), m.GpuSetSocket(), m.SetLogFd()]),
        st.builds(m.SetVringKick, index, st.booleans()),
        st.builds(m.SetVringCall, index, st.booleans()),
        st.builds(m.SetVringErr, index, st.booleans()),
        st.builds(m.SetLogBase, st.sampled_from([0, 8, 4096, 1 << 20, 1 << 62]), number),
        st.builds(
            lambda *numbers: m.SetMemTable((m.MemRegion(*numbers),)),
            address,
            number,
            address,
            number,
        ),
    )
    messages = data.draw(st.lists(kinds, min_size=5, max_size=40))
    end = data.draw(st.binary(max_size=40))
    picks = data.draw(st.lists(st.integers(0, 3), min_size=len(messages), max_size=len(messages)))
    with front_end(siege) as ring, contextlib.ExitStack() as files:
        ours, theirs = map(files.enter_context, socket.socketpair())
        null = files.enter_context(Path("/dev/zero").open("r+b", buffering=0))
        choices = [ring.fe.ram.regions[0].fd, ring.driver.kick, theirs.fileno(), null.fileno()]
        with contextlib.suppress(OSError):
            for message, pick in zip(messages, picks, strict=True):
                fds = []
                if getattr(message, "has_fd", True) and not isinstance(message, _WITHOUT_FD):
                    fds = [choices[pick]]
                ring.fe.send(message, fds)
            ring.fe.sock.sendall(end)
            ring.fe.sock.shutdown(socket.SHUT_WR)
        ours.close()
        assert_hung_up(ring.fe)
    siege.assert_serving()
    assert "Traceback" not in "".join(siege.log)


_WITHOUT_FD = (
    m.SetVringNum, m.SetVringBase, m.SetVringAddr, m.SetVringEnable, m.GetVringBase, m.GetConfig,
    m.SetConfig, m.ResetDevice, m.SetOwner, m.ResetOwner, m.GetFeatures,
)  # fmt: skip


# -- Descriptors -----------------------------------------------------------------------------------


def _pipe(kept: int) -> int:
    ends = os.pipe()
    os.close(ends[1 - kept])
    return ends[kept]


def _socket(data: bytes, *, closed: bool = False) -> int:
    ours, theirs = socket.socketpair()
    ours.sendall(data)
    if closed:
        ours.close()
    else:
        _kept.append(ours)
    return theirs.detach()


def _listener() -> int:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen()
    return listener.detach()


def _epoll() -> int:
    with select.epoll() as poll:
        return os.dup(poll.fileno())


_kept: list[socket.socket] = []

ODD_FILES: dict[str, Callable[[], int]] = {
    "pipe without writer": lambda: _pipe(0),
    "pipe without reader": lambda: _pipe(1),
    "socket hung up": lambda: _socket(b"", closed=True),
    "socket with a byte": lambda: _socket(b"x"),
    "socket with nonsense": lambda: _socket(bytes(64)),
    "listening socket": _listener,
    "datagram socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    "file": lambda: os.open(__file__, os.O_RDONLY),
    "directory": lambda: os.open("/tmp", os.O_RDONLY),
    "path": lambda: os.open("/tmp", os.O_PATH),
    "/dev/full": lambda: os.open("/dev/full", os.O_RDWR),
    "/dev/zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "epoll": _epoll,
}
PLACES: dict[str, Request] = {
    "kick": m.SetVringKick(0, True),
    "call": m.SetVringCall(0, True),
    "err": m.SetVringErr(0, True),
    "back-end channel": m.SetBackendReqFd(),
    "display": m.GpuSetSocket(),
    "log": m.SetLogBase(4096, 0),
    "memory": m.SetMemTable((m.MemRegion(Gpa(0), 1 << 20, Uva(0), 0),)),
}


@pytest.mark.parametrize("place", PLACES)
def test_descriptors_of_the_wrong_kind(siege: Siege, place: str) -> None:
    """Wherever they are sent: the session ends with a line, or goes on; nothing else happens."""
    lines = len(siege.warnings)
    for make in ODD_FILES.values():
        odd = make()
        with front_end(siege) as ring, contextlib.suppress(OSError):
            ring.fe.send(PLACES[place], [odd])
            ring.offer(ring.request(bytes(24)))
            if place == "err":
                ring.offer(64)
            ring.fe.send(m.GetFeatures())
            ring.fe.send(m.GetVringBase(0))
            ring.fe.sock.shutdown(socket.SHUT_WR)
            assert_hung_up(ring.fe)
        os.close(odd)
        while _kept:
            _kept.pop().close()
    # All at once: the log comes through a pipe, and may be late.
    assert len(siege.warnings) - lines <= 4 * len(ODD_FILES)


@pytest.mark.parametrize("place", PLACES)
def test_files_that_never_answer(siege: Siege, place: str) -> None:
    """Their device is not free before they are closed; the others are served meanwhile."""
    with silent_filesystem() as files, Bystander(siege.socket("b")) as bystander:
        number = os.open(files.path, os.O_RDWR)
        files.silence()
        with front_end(siege) as ring, contextlib.suppress(OSError):
            ring.fe.send(PLACES[place], [number])
            ring.offer(ring.request(bytes(24)))
            ring.fe.send(m.GetFeatures())
            assert_hung_up(ring.fe)
        until(lambda: any("descriptors still closing device=a" in line for line in siege.log), 10)
        siege.assert_serving("poor")
        files.end()
        with contextlib.suppress(OSError):  # nor can it be written back
            os.close(number)
    assert bystander.worst < LONGEST_WAIT


@pytest.mark.parametrize("place", PLACES)
def test_sockets_that_wait_for_their_peer_when_they_are_closed(siege: Siege, place: str) -> None:
    with lingering_socket(2) as number, Bystander(siege.socket("b")) as bystander:
        with front_end(siege) as ring, contextlib.suppress(OSError):
            ring.fe.send(PLACES[place], [number])
            os.close(number)
            assert_hung_up(ring.fe)
        time.sleep(0.2)
    assert bystander.worst < LONGEST_WAIT


def test_a_socket_that_lingers_in_a_message_that_is_not_read(siege: Siege) -> None:
    with lingering_socket(2) as number, Bystander(siege.socket("b")) as bystander:
        with front_end(siege) as ring, contextlib.suppress(OSError):
            ring.fe.send_bytes(_raw(0, 1, b""))
            ring.fe.send_bytes(b"x", [number])
            os.close(number)
            assert_hung_up(ring.fe)
        time.sleep(0.2)
    assert bystander.worst < LONGEST_WAIT


def test_memory_that_is_truncated_costs_nothing(siege: Siege) -> None:
    """A thread that copies goes on into pages of this process, and no queue finds out."""
    size = 4 << 30
    ram = GuestRam(((0, 64 * MIB), (1 << 32, size)))
    with contextlib.suppress(OSError), FrontEnd.connect(siege.socket(), ram) as fe:
        ring = RogueRing(fe.handshake(event_idx=False))
        ring.context()
        ring.guest_blob(1, entries((1 << 32) + np.arange(size // GIB, dtype=np.uint64) * GIB, GIB))
        slot = ring.submit(
            [dma.Fill(ResourceId(1), at, GIB // 4, 7) for at in range(0, size, GIB // 4)]
        )
        ring.offer(slot)
        time.sleep(0.02)  # a thread is at it
        os.ftruncate(ram.regions[1].fd, 0)
        assert_hung_up(fe)
    assert siege.peak < 512 * MIB
    until(lambda: "truncated" in "".join(siege.warnings))


@pytest.mark.parametrize(("address", "offset"), [(1, 0), (0, 1)])
def test_memory_at_an_odd_address(siege: Siege, address: int, offset: int) -> None:
    """A ring's address looks aligned, and what it means in our own mapping is not."""
    with front_end(siege) as ring:
        fe, region = ring.fe, ring.ram.regions[0]
        table = m.MemRegion(Gpa(0), region.size - 4096, Uva(region.uva + address), offset)
        with contextlib.suppress(ConnectionError):
            fe.tell(m.SetMemTable((table,)), [region.fd])
            fe.ask(m.GetFeatures())
    assert len(siege.warnings) <= 2


def test_a_second_back_end_channel_takes_the_place_of_the_first(siege: Siege) -> None:
    with front_end(siege) as ring:
        ring.context()
        ring.host_blob(1, 4096)
        ring.fe.ask(m.GetFeatures())
        time.sleep(0.02)  # the daemon waits for something on the first
        ours, theirs = socket.socketpair()
        ring.fe.tell(m.SetBackendReqFd(), [theirs.fileno()])
        theirs.close()
        bar = ring.fe.bar
        ring.fe.backend.close()
        ring.fe.backend.bar = bar
        ring.fe.backend.serve(ours)
        assert ring.run(c.ResourceMapBlob, 1, 0, timeout=5) == ResponseType.OK_MAP_INFO


def test_hundreds_of_display_sockets_at_once(siege: Siege) -> None:
    with front_end(siege) as ring:
        ours = []
        for _ in range(300):
            one, other = socket.socketpair()
            with other:
                ring.fe.send(m.GpuSetSocket(), [other.fileno()])
            ours.append(one)
        ring.fe.ask(m.GetFeatures())
        for one in ours[:-1]:  # all but the last are let go of
            one.settimeout(2)
            while one.recv(4096):
                pass
        for one in ours:
            one.close()
    assert len(siege.warnings) <= 1


# -- Rings at the wrong moment ---------------------------------------------------------------------

_COPIES = [driver.copy(1, 1, 0, 64, 32 * MIB - 64)] * 40


def test_answers_that_have_nowhere_to_go(siege: Siege) -> None:
    """Work ends while the ring is stopped, and by its next start the memory has changed."""
    ram = GuestRam(((0, 64 * MIB), (64 * MIB, 16 * MIB)))
    with FrontEnd.connect(siege.socket("a"), ram).handshake(event_idx=False) as fe:
        ring = RogueRing(fe)
        ring.context()
        ring.host_blob(1, 32 * MIB)
        request = encode(command(c.Submit3D, b"", ctx_id=1))
        gpa = ring.ram.alloc(4096)
        stream = dma.encode(_COPIES[:2])
        request = request[:24] + len(stream).to_bytes(8, "little") + stream
        ring.ram.write(gpa, request)
        ring.offer(ring.table([(gpa, len(request), 0), (70 * MIB, 24, 2)]), 4)
        time.sleep(0.005)
        fe.tell(m.SetVringEnable(0, False))
        time.sleep(0.2)
        region = ram.regions[0]
        table = m.MemRegion(Gpa(region.gpa), region.size, Uva(region.uva), region.offset)
        fe.tell(m.SetMemTable((table,)), [region.fd])
        begin = time.monotonic()
        fe.tell(m.SetVringEnable(0, True))
        fe.ask(m.GetFeatures())
        assert time.monotonic() - begin < LONGEST_WAIT


def test_a_fresh_start_while_work_is_under_way(siege: Siege) -> None:
    with front_end(siege) as ring:
        ring.context()
        ring.host_blob(1, 32 * MIB)
        ring.offer(ring.submit(_COPIES))
        time.sleep(0.01)
        ring.fe.tell(m.SetVringEnable(0, False))
        ring.fe.tell(m.SetVringBase(0, 0))
        ring.fe.tell(m.SetVringEnable(0, True))
        assert ring.fe.ask(m.GetFeatures())


def test_a_bad_ring_and_a_fresh_start_while_work_is_under_way(siege: Siege) -> None:
    with front_end(siege) as ring:
        ring.context()
        ring.host_blob(1, 32 * MIB)
        ring.offer(ring.submit(_COPIES))
        ring.offer(64)
        assert select.select([ring.driver.err], [], [], 5)[0]
        ring.fe.tell(m.SetVringBase(0, 0))
        ring.fe.tell(m.SetVringEnable(0, True))
        assert ring.fe.ask(m.GetFeatures())
