"""A blocking vhost-user front-end for tests: what QEMU does, in QEMU's order, on plain sockets.

It has real guest memory (memfds), real rings and eventfds (`tests.support.ring_driver`), and a
thread that serves the back-end's requests: SHMEM_MAP really maps the fd, so that a test can look
into the device's BAR. Everything that waits gives up after `TIMEOUT` seconds.

Of vgpud it takes the codec of messages and nothing else. Its sockets, memory and rings are its own
on purpose: a mistake in the daemon's must not be made on both sides, where no test would see it.

    with FrontEnd.connect(path).handshake() as fe:
        response = fe.command(request, response_size=24)
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.back_end_requests import BackendRequests, Bar
from tests.support.ring_driver import F_EVENT_IDX, F_INDIRECT_DESC, TIMEOUT, Driver, GuestRam
from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.header import decode_header
from vgpud.vhost.wire.protocol import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    HEADER,
    VRING_F_LOG,
    HeaderFlag,
    ProtocolFeature,
)
from vgpud.vhost.wire.replies import (
    ConfigReply,
    EmptyReply,
    MessageReply,
    ShmemConfig,
    U64Reply,
    VringState,
)
from vgpud.vhost.wire.requests import Request, decode_reply, encode_request

LOG_PAGE = 4096
NO_FEATURE = ProtocolFeature(0)


class RefusedError(AssertionError):
    """The back-end answered with something else than success."""


def _connected(path: str | Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


class FrontEnd:
    """One connection to a back-end, and the guest behind it; a context manager.

    `backend` serves the back-end's requests, and `bar` is what they made. `mem_table_on_map`: send
    SET_MEM_TABLE before the answer to a map or an unmap, as QEMU does.
    """

    def __init__(self, sock: socket.socket, ram: GuestRam | None = None) -> None:
        sock.settimeout(TIMEOUT)
        self.sock = sock
        self.ram = ram or GuestRam()
        self.drivers: list[Driver] = []
        self.backend = BackendRequests(self._mapped)
        self.mem_table_on_map = True
        self.offered = 0
        self.features = 0
        self.protocol_features = NO_FEATURE
        self._main = threading.RLock()  # requests on the main channel, from two threads
        self._log: mmap.mmap | None = None
        self._started = False
        self._without = NO_FEATURE

    @property
    def bar(self) -> Bar | None:
        """The device's shared-memory region, if it has one."""
        return self.backend.bar

    @classmethod
    def connect(cls, path: str | Path, ram: GuestRam | None = None) -> Self:
        """Connect to a back-end's socket."""
        return cls(_connected(path), ram)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """The VMM and its guest end; raises what went wrong on the back-end's channel."""
        try:
            self.disconnect()
        finally:
            for driver in self.drivers:
                driver.close()
            self.drivers.clear()
            self.ram.close()
            if self._log:
                self._log.close()

    def disconnect(self) -> None:
        """Drop the connection, and what it mapped; the guest stays, for `reconnect`."""
        self._started = False
        self.protocol_features = NO_FEATURE
        try:
            self.backend.close()
        finally:
            self.sock.close()

    def reconnect(self, path: str | Path) -> None:
        """Go on with the same guest on a new connection, where its rings stand."""
        self.disconnect()
        self.sock = _connected(path)
        self._introduce(self._without)
        for driver in self.drivers:
            driver.collect()
        self.start(self.features & ~F_PROTOCOL_FEATURES)

    # -- The main channel --------------------------------------------------------------------------

    def send(self, message: Request, fds: Sequence[int] = (), *, need_reply: bool = False) -> None:
        """Send `message`; reads no answer."""
        self.send_bytes(encode_request(message, need_reply=need_reply), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send anything at all, the fds with its first byte."""
        sent = socket.send_fds(self.sock, [data], list(fds))
        if sent < len(data):
            self.sock.sendall(data[sent:])

    def receive_reply(self, message: Request) -> MessageReply:
        """Read the answer to `message`. Raises `ConnectionError` if the back-end has hung up."""
        header = decode_header(self._receive(HEADER.size))
        request = message.request_id
        assert header.request == request, f"{header} answers {message}"
        assert header.flags == HeaderFlag.VERSION_1 | HeaderFlag.REPLY
        return decode_reply(request, self._receive(header.size))

    def ask(self, message: Request, fds: Sequence[int] = ()) -> MessageReply:
        """Send `message` and read the reply that it has."""
        with self._main:
            self.send(message, fds)
            return self.receive_reply(message)

    def tell(self, message: Request, fds: Sequence[int] = ()) -> None:
        """Send `message` and, if REPLY_ACK is on, see it acknowledged. Raises `RefusedError`."""
        with self._main:
            need_reply = ProtocolFeature.REPLY_ACK in self.protocol_features
            self.send(message, fds, need_reply=need_reply)
            if need_reply and message.reply is None:
                reply = self.receive_reply(message)
                if reply != U64Reply(0):
                    raise RefusedError(f"{message}: {reply}")

    def hung_up(self) -> bool:
        """Whether the back-end has closed the connection, after waiting for it to do so."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise ConnectionError("the back-end has hung up")
            data += more
        return data

    # -- QEMU's order ------------------------------------------------------------------------------

    def handshake(
        self,
        *,
        queues: int = 2,
        size: int = 64,
        indirect: bool = True,
        event_idx: bool = True,
        without: ProtocolFeature = NO_FEATURE,
        start: bool = True,
    ) -> Self:
        """Everything up to a running device; with `start` false, up to what comes with the guest.

        Takes every protocol feature on offer but `without`. Closes itself on failure.
        """
        try:
            self.drivers += [
                Driver(self.ram, index, size=size, indirect=indirect, event_idx=event_idx)
                for index in range(queues)
            ]
            self._introduce(without)
            if start:
                self.start()
        except BaseException:
            self.close()
            raise
        return self

    def _introduce(self, without: ProtocolFeature) -> None:
        self._without = without
        self.offered = self._number(m.GetFeatures())
        assert self.offered & F_PROTOCOL_FEATURES
        offered = ProtocolFeature(self._number(m.GetProtocolFeatures()))
        self.send(m.SetProtocolFeatures(offered & ~without))
        self.protocol_features = offered & ~without
        if ProtocolFeature.MQ in self.protocol_features:
            assert self._number(m.GetQueueNum()) >= 1
        if ProtocolFeature.BACKEND_REQ in self.protocol_features:
            ours, theirs = socket.socketpair()
            self.backend.serve(ours)
            with theirs:
                self.tell(m.SetBackendReqFd(), [theirs.fileno()])
        self.send(m.SetOwner())
        assert self._number(m.GetFeatures()) == self.offered
        for driver in self.drivers:
            self.tell(m.SetVringCall(driver.index, True), [driver.call])
            self.tell(m.SetVringErr(driver.index, True), [driver.err])
        if ProtocolFeature.SHMEM in self.protocol_features:
            config = self.ask(m.GetShmemConfig())
            assert isinstance(config, ShmemConfig)
            for shmid, region_size in enumerate(config.sizes):
                if region_size:
                    self.backend.bar = Bar(shmid, region_size)

    def start(self, features: int | None = None) -> None:
        """The guest driver starts: config, features, memory, rings. `features` as it took them.

        By default the guest takes all it knows, and EVENT_IDX whether it is offered or not, as QEMU
        lets it.
        """
        if ProtocolFeature.CONFIG in self.protocol_features:
            self.get_config(0, 16)
        if features is None:
            features = self.offered & ~F_LOG_ALL & ~F_EVENT_IDX & ~F_INDIRECT_DESC
            if any(driver.event_idx for driver in self.drivers):
                features |= F_EVENT_IDX
            if any(driver.indirect for driver in self.drivers):
                features |= F_INDIRECT_DESC
        self.features = features | F_PROTOCOL_FEATURES
        self.tell(m.SetFeatures(self.features))
        self.set_mem_table()
        for driver in self.drivers:
            self.start_ring(driver)
        for driver in self.drivers:
            self.tell(m.SetVringEnable(driver.index, True))
        self._started = True

    def start_ring(self, driver: Driver, *, log: bool = False) -> None:
        """Tell the back-end all about one ring but that it is enabled."""
        self.tell(m.SetVringNum(driver.index, driver.size))
        self.tell(m.SetVringBase(driver.index, driver.last_used))
        self.set_vring_addr(driver, log=log)
        self.tell(m.SetVringKick(driver.index, True), [driver.kick])
        self.tell(m.SetVringCall(driver.index, True), [driver.call])

    def set_vring_addr(self, driver: Driver, *, log: bool = False) -> None:
        """Say where one ring lives, and whether its used ring is logged."""
        address = self.ram.user_address
        self.tell(
            m.SetVringAddr(
                driver.index,
                VRING_F_LOG if log else 0,
                Uva(address(driver.desc)),
                Uva(address(driver.used)),
                Uva(address(driver.avail)),
                Gpa(driver.used),
            )
        )

    def stop(self) -> list[int]:
        """The guest resets, or the VM stops: each ring disabled, then asked for its base."""
        for driver in self.drivers:
            self.tell(m.SetVringEnable(driver.index, False))
        self._started = False
        bases = []
        for driver in self.drivers:
            state = self.ask(m.GetVringBase(driver.index))
            assert isinstance(state, VringState)
            assert state.index == driver.index
            bases.append(state.base)
        return bases

    def reset(self) -> None:
        """A guest reset and a fresh driver on the same connection."""
        self.stop()
        for driver in self.drivers:
            driver.reset()
        self.start()

    def set_mem_table(self) -> None:
        """Send all of guest memory, mapped parts of the BAR with it."""
        regions = [
            (m.MemRegion(Gpa(r.gpa), r.size, Uva(r.uva), r.offset), r.fd) for r in self.ram.regions
        ]
        if self.bar:
            regions += self.bar.regions()
        # QEMU's table has 8 entries; what does not fit it leaves out, with a warning.
        regions = regions[:8]
        self.tell(m.SetMemTable(tuple(r for r, _ in regions)), [fd for _, fd in regions])

    # -- The device --------------------------------------------------------------------------------

    def command(
        self, request: bytes, *, response_size: int = 24, queue: int = 0, timeout: float = TIMEOUT
    ) -> bytes:
        """Have the device answer one request of the guest."""
        return self.drivers[queue].command(request, response_size, timeout)

    def get_config(self, offset: int, size: int) -> bytes:
        """Read config space; raises `RefusedError`."""
        reply = self.ask(m.GetConfig(offset, size, 0))
        if not isinstance(reply, ConfigReply):
            raise RefusedError(f"GET_CONFIG {offset}+{size}: {reply}")
        return reply.data

    def gpu_set_socket(self) -> socket.socket:
        """Give the back-end a display; the other end of it, for the test to serve and close."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.tell(m.GpuSetSocket(), [theirs.fileno()])
        ours.settimeout(TIMEOUT)
        return ours

    def start_log(self) -> None:
        """Have all writes into guest memory logged from here on."""
        last = max(region.gpa + region.size for region in self.ram.regions)
        size = -(-last // (LOG_PAGE * 8))
        fd = os.memfd_create("dirty-log", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._log = mmap.mmap(fd, size)
            assert self.ask(m.SetLogBase(size, 0), [fd]) == EmptyReply()
        finally:
            os.close(fd)
        self.tell(m.SetFeatures(self.features | F_LOG_ALL))
        for driver in self.drivers:
            self.set_vring_addr(driver, log=True)

    def dirty_pages(self) -> set[int]:
        """The guest pages logged since the last call, by number."""
        assert self._log
        bits = int.from_bytes(self._log[:], "little")
        self._log[:] = bytes(len(self._log))
        return {page for page in range(bits.bit_length()) if bits >> page & 1}

    def _mapped(self) -> None:
        if self._started and self.mem_table_on_map:
            self.set_mem_table()

    def _number(self, message: Request) -> int:
        reply = self.ask(message)
        assert isinstance(reply, U64Reply)
        return reply.value
