"""The tests' own front-end, against a back-end of a hundred lines: QEMU's order, over real sockets.

The back-end's device answers each chain with its bytes reversed. It reads the rings in the plainest
way there is, so that what goes wrong here is the front-end's, the driver's, or the session's.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.back_end_requests import receive
from tests.support.front_end import FrontEnd, RefusedError
from tests.support.ring_driver import F_EVENT_IDX, F_INDIRECT_DESC, RingTimeoutError
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.back_end_channel import BackEndRequester, ConfigChange, ShmemMap, ShmemUnmap
from vgpud.vhost.wire.connection import SUPPORTED, Connection, NeedData, Received
from vgpud.vhost.wire.protocol import F_LOG_ALL, F_PROTOCOL_FEATURES, ProtocolFeature
from vgpud.vhost.wire.replies import ConfigReply, MessageReply, ShmemConfig, U64Reply, VringState

FEATURES = 1 << 32 | F_INDIRECT_DESC
BAR_SIZE = 1 << 20


@dataclass
class Ring:
    num: int = 0
    base: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    fds: dict[str, int] = field(default_factory=dict)
    enabled: bool = False


class ReversingBackend:
    """Serves one connection from a thread; `seen` is what it was sent, by name."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.session = Connection[int](FEATURES, SUPPORTED)
        self.rings = [Ring(), Ring()]
        self.memory: list[tuple[m.MemRegion, mmap.mmap]] = []
        self.seen: list[str] = []
        self.backend_fd = -1
        self.display_fds: list[int] = []
        self.log: tuple[mmap.mmap, m.SetLogBase] | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        with self.sock:
            while True:
                kicks = [r.fds["kick"] for r in self.rings if r.enabled and "kick" in r.fds]
                ready, _, _ = select.select([self.sock.fileno(), *kicks], [], [])
                for ring in self.rings:
                    if ring.fds.get("kick") in ready:
                        os.eventfd_read(ring.fds["kick"])
                        self.work(ring)
                if self.sock.fileno() not in ready:
                    continue
                data, fds = receive(self.sock, self.session.bytes_wanted)
                if not data:
                    return
                self.session.receive_data(data, fds)
                match self.session.next_event():
                    case Received() as received:
                        self.seen.append(type(received.message).__name__)
                        # Sending nothing would still find out that the front-end has gone.
                        if answer := self.handle(received):
                            self.sock.sendall(answer)
                    case NeedData():
                        pass

    def close(self) -> None:
        self.thread.join(5)
        assert not self.thread.is_alive()
        for ring in self.rings:
            for fd in ring.fds.values():
                os.close(fd)
        for fd in (self.backend_fd, *self.display_fds, *self.session.close()):
            if fd >= 0:
                os.close(fd)

    def handle(self, received: Received[int]) -> bytes:
        reply: MessageReply | None = None
        match received.message:
            case m.GetFeatures():
                reply = U64Reply(self.session.offered_features)
            case m.GetProtocolFeatures():
                reply = U64Reply(self.session.offered_protocol_features)
            case m.GetQueueNum():
                reply = U64Reply(2)
            case m.GetShmemConfig():
                reply = ShmemConfig((0, BAR_SIZE))
            case m.GetConfig(offset, size, _):
                if offset + size > 20:
                    return self.session.refuse(received)
                reply = ConfigReply(offset, 0, bytes(range(20))[offset : offset + size])
            case m.SetMemTable(regions):
                for _, mapping in self.memory:
                    mapping.close()
                self.memory.clear()
                for region, fd in zip(regions, received.handles, strict=True):
                    length = region.mmap_offset + region.memory_size
                    self.memory.append((region, mmap.mmap(fd, length)))
                    os.close(fd)
            case m.SetLogBase() as base:
                self.log = (mmap.mmap(received.handles[0], base.size), base)
                os.close(received.handles[0])
            case m.SetVringNum(index, num):
                if num > 1024:
                    return self.session.refuse(received)
                self.rings[index].num = num
            case m.SetVringBase(index, base_index):
                self.rings[index].base = base_index
            case m.SetVringAddr(index, _, desc, used, avail, _):
                ring = self.rings[index]
                ring.desc, ring.used, ring.avail = desc, used, avail
            case m.SetVringKick(index):
                self.keep(index, "kick", received)
            case m.SetVringCall(index):
                self.keep(index, "call", received)
            case m.SetVringErr(index):
                self.keep(index, "err", received)
            case m.SetVringEnable(index, enable):
                self.rings[index].enabled = enable
            case m.GetVringBase(index):
                reply = VringState(index, self.rings[index].base)
            case m.SetBackendReqFd():
                (self.backend_fd,) = received.handles
            case m.GpuSetSocket():
                self.display_fds += received.handles
            case _:
                assert not received.handles
        return self.session.reply(received, reply)

    def keep(self, index: int, name: str, received: Received[int]) -> None:
        if name in self.rings[index].fds:
            os.close(self.rings[index].fds.pop(name))
        if received.handles:
            self.rings[index].fds[name] = received.handles[0]

    def at(self, address: int, *, user: bool = True) -> tuple[mmap.mmap, int]:
        for region, mapping in self.memory:
            start = region.userspace_addr if user else region.guest_phys_addr
            if start <= address < start + region.memory_size:
                return mapping, region.mmap_offset + address - start
        raise KeyError(hex(address))

    def u16(self, address: int) -> int:
        mapping, offset = self.at(address)
        return int.from_bytes(mapping[offset : offset + 2], "little")

    def put(self, address: int, data: bytes, *, user: bool = True) -> None:
        mapping, offset = self.at(address, user=user)
        mapping[offset : offset + len(data)] = data
        if self.log and not user:
            for page in range(address >> 12, (address + len(data) - 1 >> 12) + 1):
                self.log[0][page >> 3] |= 1 << (page & 7)

    def work(self, ring: Ring) -> None:
        event_idx = self.session.features & F_EVENT_IDX
        start = ring.base
        while ring.base != self.u16(ring.avail + 2):
            head = self.u16(ring.avail + 4 + 2 * (ring.base % ring.num))
            written = self.answer(ring, head)
            element = struct.pack("<II", head, written)
            self.put(ring.used + 4 + 8 * (ring.base % ring.num), element)
            ring.base = (ring.base + 1) & 0xFFFF
            self.put(ring.used + 2, struct.pack("<H", ring.base))
            if event_idx:
                self.put(ring.used + 4 + 8 * ring.num, struct.pack("<H", ring.base))
        wanted = self.u16(ring.avail + 4 + 2 * ring.num)
        crossed = ((ring.base - wanted - 1) & 0xFFFF) < ((ring.base - start) & 0xFFFF)
        if ring.base != start and (crossed or not event_idx):
            os.eventfd_write(ring.fds["call"], 1)

    def answer(self, ring: Ring, slot: int) -> int:
        data, written = b"", 0
        mapping, table = self.at(ring.desc)
        while True:
            at = table + 16 * slot
            address, length, flags, follows = struct.unpack_from("<QIHH", mapping, at)
            if flags & 4:
                mapping, table = self.at(address, user=False)
                slot = 0
                continue
            if flags & 2:
                out = data[::-1][written : written + length]
                self.put(address, out, user=False)
                written += len(out)
            else:
                source, offset = self.at(address, user=False)
                data += source[offset : offset + length]
            if not flags & 1:
                return written
            slot = follows


@pytest.fixture
def pair() -> Iterator[tuple[FrontEnd, ReversingBackend]]:
    ours, theirs = socket.socketpair()
    backend = ReversingBackend(theirs)
    front_end = FrontEnd(ours)
    yield front_end, backend
    front_end.close()
    backend.close()


Pair = tuple[FrontEnd, ReversingBackend]


def test_qemus_order(pair: Pair) -> None:
    front_end, backend = pair
    front_end.handshake(queues=1)
    assert backend.seen == [
        "GetFeatures",
        "GetProtocolFeatures",
        "SetProtocolFeatures",
        "GetQueueNum",
        "SetBackendReqFd",
        "SetOwner",
        "GetFeatures",
        "SetVringCall",
        "SetVringErr",
        "GetShmemConfig",
        "GetConfig",
        "SetFeatures",
        "SetMemTable",
        "SetVringNum",
        "SetVringBase",
        "SetVringAddr",
        "SetVringKick",
        "SetVringCall",
        "SetVringEnable",
    ]
    assert front_end.offered == FEATURES | F_PROTOCOL_FEATURES | F_LOG_ALL


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
def test_driver(pair: Pair, indirect: bool, event_idx: bool) -> None:
    front_end, _ = pair
    front_end.handshake(size=8, indirect=indirect, event_idx=event_idx)
    for round_ in range(40):
        request = bytes((round_ + i) & 0xFF for i in range(100 + round_))
        assert front_end.command(request, response_size=200) == request[::-1]
    assert front_end.command(b"on the other ring", response_size=4, queue=1) == b"gnir"
    driver = front_end.drivers[0]
    head = driver.submit([b"ab", b"cd"], [1, 2, 9], kick=False)
    driver.notify()
    assert driver.wait(head) == b"dcba"


def test_several_chains_at_once(pair: Pair) -> None:
    front_end, _ = pair
    driver = front_end.handshake(size=16).drivers[0]
    heads = {driver.submit(b"%02d" % i, 2, kick=i == 15): b"%02d" % i for i in range(16)}
    for head, request in reversed(heads.items()):
        assert driver.wait(head) == request[::-1]


def test_waiting_ends(pair: Pair) -> None:
    front_end, _ = pair
    driver = front_end.handshake().drivers[0]
    head = driver.submit(b"x", 1, kick=False)
    with pytest.raises(RingTimeoutError, match="was not used"):
        driver.wait(head, timeout=0.05)


def test_memory_in_several_regions(pair: Pair) -> None:
    ram = pair[0].ram
    border = ram.regions[1].gpa
    ram.write(border - 3, b"border")
    assert ram.read(border - 3, 6) == b"border"
    assert ram.regions[1].map[4096:4099] == b"der"
    assert ram.user_address(border) == ram.regions[1].uva


def test_guest_reset_and_restart(pair: Pair) -> None:
    front_end, backend = pair
    front_end.handshake()
    for _ in range(5):
        front_end.command(b"x", response_size=1)
    assert front_end.stop() == [5, 0]
    front_end.start()
    assert front_end.command(b"ab", response_size=2) == b"ba"
    front_end.reset()
    assert front_end.drivers[0].last_used == 0
    assert front_end.command(b"ab", response_size=2) == b"ba"
    assert backend.seen.count("GetFeatures") == 2


def test_config_and_refusals(pair: Pair) -> None:
    front_end, _ = pair
    front_end.handshake(start=False)
    assert front_end.get_config(8, 4) == bytes([8, 9, 10, 11])
    with pytest.raises(RefusedError, match="GET_CONFIG"):
        front_end.get_config(16, 8)
    with pytest.raises(RefusedError, match="SetVringNum"):
        front_end.tell(m.SetVringNum(0, 4096))


def test_without_acknowledgements(pair: Pair) -> None:
    front_end, _ = pair
    front_end.handshake(without=ProtocolFeature.REPLY_ACK | ProtocolFeature.SHMEM)
    front_end.tell(m.SetVringNum(0, 4096))  # refused, and no one is told
    assert front_end.bar is None
    assert front_end.command(b"ab", response_size=2) == b"ba"


def test_dirty_log(pair: Pair) -> None:
    front_end, _ = pair
    driver = front_end.handshake().drivers[0]
    front_end.start_log()
    assert front_end.dirty_pages() == set()
    head = driver.submit(b"dirty", 5)
    ((gpa, _),) = driver._pending[head].writable
    driver.wait(head)
    assert front_end.dirty_pages() == {gpa >> 12}


def test_display_socket(pair: Pair) -> None:
    front_end, backend = pair
    front_end.handshake(start=False)
    with front_end.gpu_set_socket() as display:
        with socket.socket(fileno=os.dup(backend.display_fds[0])) as theirs:
            theirs.sendall(b"hello")
        assert display.recv(5) == b"hello"


def test_bar(pair: Pair) -> None:
    front_end, backend = pair
    front_end.handshake()
    channel = BackEndRequester(reply_ack=True)
    window = os.memfd_create("window", os.MFD_CLOEXEC)
    os.ftruncate(window, 0x4000)
    os.pwrite(window, b"in the window", 0x1000)
    with socket.socket(fileno=os.dup(backend.backend_fd)) as sock:

        def status(message: ShmemMap | ShmemUnmap | ConfigChange, *fds: int) -> int:
            socket.send_fds(sock, [channel.send(message)], fds)
            channel.receive_data(sock.recv(20, socket.MSG_WAITALL))
            reply = channel.next_reply()
            assert reply is not None
            assert reply.request == message
            return reply.status

        sock.settimeout(5)
        tables = backend.seen.count("SetMemTable")
        mapped = ShmemMap(1, 0x1000, 0x8000, 0x3000, writable=True)
        assert status(mapped, window) == 0
        assert backend.seen.count("SetMemTable") == tables + 1
        assert front_end.bar
        assert front_end.bar.read(0x8000, 13) == b"in the window"
        front_end.bar.write(0x8007, b"BAR")
        assert os.pread(window, 13, 0x1000) == b"in the BARdow"
        for bad in (
            mapped,
            ShmemMap(1, 0, BAR_SIZE - 0x1000, 0x2000, writable=True),
            ShmemMap(0, 0, 0, 0x1000, writable=True),
            ShmemMap(1, 0x3000, 0, 0x2000, writable=True),
            ShmemMap(1, 0, 0, 0, writable=True),
            ShmemUnmap(1, 0x8000, 0x1000),
            ShmemUnmap(2, 0x8000, 0x3000),
        ):
            assert status(bad, *[window] * isinstance(bad, ShmemMap)) == 1
        assert status(ShmemMap(1, 0, 0, 0x1000, writable=True)) == 1
        assert status(ShmemUnmap(1, 0x8000, 0x3000)) == 0
        with pytest.raises(KeyError, match="nothing is mapped"):
            front_end.bar.read(0x8000, 1)
        front_end.backend.refuse_maps = True
        assert status(mapped, window) == 1
        assert status(ConfigChange()) == 0
        front_end.backend.wait(ConfigChange())
    os.close(window)
