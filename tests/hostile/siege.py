"""What the hostile tests share: a guest that writes its ring as it likes, and the watched daemon.

The daemon under attack is a process of its own, so that what it takes and how long it keeps others
waiting can be measured from outside.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tests.support.front_end import FrontEnd
from tests.support.process import VGPUD, DaemonProcess, config_toml
from tests.support.ring_driver import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, GuestRam
from tests.support.until import until
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import COMMANDS, Command, encode
from vgpud.gpu.wire.header import HEADER_SIZE, Header
from vgpud.gpu.wire.mem_entries import MEM_ENTRY
from vgpud.gpu.wire.protocol import BlobFlag, BlobMem, CapsetId, ResponseType

MIB: Final = 1 << 20
ROOMY: Final = ((0, 96 * MIB),)
PATIENCE: Final = 20.0

MADE: Final = int(ResponseType.OK_NODATA)
NO_ENTRIES: Final = np.zeros(0, MEM_ENTRY)

_DESC = struct.Struct("<QIHH")
_USED_ELEM = struct.Struct("<II")
_FIRST_SLOT: Final = 1 << 16
"""Slots are told from heads, which are 16 bits."""
_TYPES: Final = {kind: kind.command_type for kind in COMMANDS.values()}


def command(kind: type[Any], *fields: Any, **header: Any) -> Command:
    """A command of this class, with the header that belongs to it."""
    made: Command = kind(Header(_TYPES[kind], **header), *fields)
    return made


def entries(addresses: Any, lengths: Any) -> NDArray[np.void]:
    """A list of backing pages; either argument may be one number for all."""
    addresses, lengths = np.broadcast_arrays(addresses, lengths)
    array = np.zeros(addresses.size, MEM_ENTRY)
    array["addr"], array["length"] = addresses.ravel(), lengths.ravel()
    return array


def connected(path: Path) -> socket.socket:
    """Connect, and wait for a place in the queue of those who wait to be served."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(None)
    sock.connect(str(path))
    return sock


def rogue_front_end(
    path: Path, *, size: int = 64, layout: Sequence[tuple[int, int]] = ROOMY
) -> FrontEnd:
    """A front-end with much memory, plain notifications and a running device."""
    ram = GuestRam(layout)
    try:
        return FrontEnd(connected(path), ram).handshake(size=size, event_idx=False)
    except BaseException:
        ram.close()
        raise


class RogueRing:
    """A ring that a guest fills as it likes.

    A slot is a request that was laid out in memory; it can be made available many times at once,
    with another head each time. Heads are numbers below 2**16, good or bad.
    """

    no_pages = NO_ENTRIES

    def __init__(self, fe: FrontEnd, queue: int = 0) -> None:
        self.fe = fe
        self.driver = fe.drivers[queue]
        self.ram = fe.ram
        self._tables: list[tuple[int, int]] = []
        self._free: list[int] = [*range(self.driver.size)]
        self._seen = self.driver.last_used
        self._avail = self.driver.last_used
        self._answers: dict[int, int] = {}
        self._requests: dict[int, int] = {}

    def table(self, buffers: Sequence[tuple[int, int, int]]) -> int:
        """Write an indirect table of (gpa, length, flags), return the slot that leads to it."""
        last = len(buffers) - 1
        entries = b"".join(
            _DESC.pack(gpa, length, flags | (DESC_F_NEXT if at < last else 0), at + 1)
            for at, (gpa, length, flags) in enumerate(buffers)
        )
        return self.table_of(entries)

    def table_of(self, entries: bytes) -> int:
        """The same with descriptors as they are to lie in memory."""
        gpa = self.ram.alloc(len(entries))
        self.ram.write(gpa, entries)
        self._tables.append((gpa, len(entries)))
        return _FIRST_SLOT + len(self._tables) - 1

    def request(self, data: bytes, response_size: int = 512) -> int:
        """Lay a request out in memory, return its slot."""
        gpa, answer = self.ram.alloc(len(data)), self.ram.alloc(response_size)
        self.ram.write(gpa, data)
        slot = self.table([(gpa, len(data), 0), (answer, response_size, DESC_F_WRITE)])
        self._answers[slot], self._requests[slot] = answer, gpa
        return slot

    def command(self, kind: type[Any], *fields: Any, **header: int) -> int:
        """The same for a command."""
        return self.request(encode(command(kind, *fields, **header)))

    def renumber(self, slot: int, resource_id: int) -> None:
        """Have a command that was laid out speak of another resource."""
        self.ram.write(self._requests[slot] + HEADER_SIZE, resource_id.to_bytes(4, "little"))

    def offer(self, slot: int, count: int = 1, *, kick: bool = True) -> list[int]:
        """Make a slot available, so many times at once; or a head, so many times over.

        Return the heads.
        """
        self._collect()
        heads = []
        for _ in range(count):
            head = self._head(slot) if slot >= _FIRST_SLOT else slot
            heads.append(head)
            self._store(self.driver.avail + 4 + 2 * (self._avail % self.driver.size), head)
            self._avail = (self._avail + 1) & 0xFFFF
        self._store(self.driver.avail + 2, self._avail)
        if kick:
            self.kick()
        return heads

    def _head(self, slot: int) -> int:
        """Have a head that is not in use lead to a slot."""
        head = self._free.pop()
        gpa, size = self._tables[slot - _FIRST_SLOT]
        self.ram.write(self.driver.desc + 16 * head, _DESC.pack(gpa, size, DESC_F_INDIRECT, 0))
        return head

    def _collect(self) -> None:
        """Take back the heads that the device has used."""
        used = self.used
        while self._seen != used:
            at = self.driver.used + 4 + 8 * (self._seen % self.driver.size)
            self._free.append(_USED_ELEM.unpack(self.ram.read(at, 8))[0])
            self._seen = (self._seen + 1) & 0xFFFF

    def _store(self, gpa: int, value: int) -> None:
        # In one store, which struct.pack_into is not: it zeroes its target first.
        region = self.ram.regions[0]
        with memoryview(region.map) as view, view.cast("H") as words:
            words[(region.offset + gpa - region.gpa) // 2] = value

    def kick(self) -> None:
        """Kick."""
        os.eventfd_write(self.driver.kick, 1)

    @property
    def used(self) -> int:
        """The device's index."""
        return self.ram.load_u16(self.driver.used + 2)

    @property
    def broken(self) -> bool:
        """Whether the device has said that the ring can't be used."""
        return bool(select.select([self.driver.err], [], [], 0)[0])

    @property
    def unanswered(self) -> int:
        """How many chains the device has not given back."""
        return (self._avail - self.used) & 0xFFFF

    def response(self, slot: int) -> int:
        """The type of the response that lies in a slot's memory."""
        return int.from_bytes(self.ram.read(self._answers[slot], 4), "little")

    def wait_idle(self, timeout: float = PATIENCE) -> None:
        """Wait until everything was given back."""
        until(lambda: self.unanswered == 0, timeout, f"{self.unanswered} chains unanswered")

    def run(self, kind: type[Any], *fields: Any, timeout: float = PATIENCE, **header: int) -> int:
        """Have one command done, return the type of its response."""
        slot = self.command(kind, *fields, **header)
        self.offer(slot)
        self.wait_idle(timeout)
        return self.response(slot)

    # -- What attacks are made of ------------------------------------------------------------------

    def context(self) -> None:
        """Make context 1."""
        assert self.run(c.CtxCreate, CapsetId.DMA, b"rogue", ctx_id=1) == MADE

    def host_blob(self, blob: int, size: int) -> None:
        """Make a host blob and attach it to context 1."""
        kind, flags = BlobMem.HOST3D, BlobFlag.USE_MAPPABLE
        made = self.run(c.ResourceCreateBlob, blob, kind, flags, 0, size, NO_ENTRIES, ctx_id=1)
        assert made == MADE
        assert self.run(c.CtxAttachResource, blob, ctx_id=1) == MADE

    def guest_blob(self, blob: int, pages: NDArray[np.void]) -> None:
        """Make a blob of guest memory and attach it to context 1."""
        size = int(pages["length"].sum(dtype=np.uint64))
        assert self.run(c.ResourceCreateBlob, blob, BlobMem.GUEST, 0, 0, size, pages) == MADE
        assert self.run(c.CtxAttachResource, blob, ctx_id=1) == MADE

    def submit(self, packets: Sequence[dma.Packet], **header: int) -> int:
        """Lay out a SUBMIT_3D in context 1, return its slot."""
        return self.command(c.Submit3D, dma.encode(packets), ctx_id=1, **header)


def assert_hung_up(fe: FrontEnd) -> None:
    """See the session end."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while fe.sock.recv(4096):
            pass


class Bystander:
    """A well-behaved guest on another device: how long was it kept waiting at worst?"""

    def __init__(self, path: Path) -> None:
        self._fe = FrontEnd(connected(path)).handshake()
        self._request = encode(command(c.GetDisplayInfo))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.worst = 0.0
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._fe.close()
        if kind is None and self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                begin = time.perf_counter()
                try:
                    self._fe.command(self._request, response_size=408)
                finally:
                    self.worst = max(self.worst, time.perf_counter() - begin)
                time.sleep(0.001)
        except BaseException as error:  # handed on by __exit__
            self.error = error


class Siege:
    """A daemon with devices `a`, `b` (1 GiB each) and `poor` (8 MiB), which tests share.

    One that an attack has left hung or dead is put in the place of by a fresh one.
    """

    DEVICES = ("a", "b", "poor")
    WINDOW = 256 * MIB
    LIMIT = 1024 * MIB
    POOR_WINDOW = 4 * MIB
    POOR_LIMIT = 8 * MIB

    def __init__(self, layout: str = "window", program: Sequence[str | Path] = VGPUD) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vgpud-siege-", dir="/tmp"))
        config = config_toml(self._directory, ("a", "b", "poor"), layout=layout)
        first, poor = config.split('name = "poor"')
        poor = poor.replace("256MiB", "4MiB").replace("1GiB", "8MiB")
        self._config = f'{first}name = "poor"{poor}'
        self._program = program
        self._logged = 0
        self._peak = 0
        self.daemon = self._start()

    def _start(self) -> DaemonProcess:
        self.daemon = DaemonProcess(
            self._directory, self._config, devices=self.DEVICES, program=self._program
        )
        self.daemon.__enter__()
        self._idle = self.daemon.idle_files()
        return self.daemon

    def close(self) -> None:
        """End the daemon."""
        try:
            self.daemon.__exit__(None, None, None)
        finally:
            shutil.rmtree(self._directory)

    def kill(self) -> None:
        """End the daemon whatever it does, or did."""
        self.daemon.close()
        shutil.rmtree(self._directory)

    def socket(self, device: str = "a") -> Path:
        """The vhost-user socket of a device."""
        return self.daemon.socket(device)

    # -- What the daemon does meanwhile ------------------------------------------------------------

    def begin(self) -> None:
        """A test starts: what it causes is told from what was before."""
        self._logged = len(self.daemon.log)
        Path(f"/proc/{self.daemon.pid}/clear_refs").write_text("5")
        self._peak = self.status("VmHWM")

    def end(self) -> None:
        """A test ends: nobody else has suffered, nothing is left over. Replaces a broken daemon."""
        try:
            self.assert_serving()
            with contextlib.suppress(AssertionError):
                until(lambda: self.daemon.open_files() == self._idle, 5)
            assert self.daemon.open_files() == self._idle
            assert "Traceback" not in "".join(self.log), "".join(self.log)
        except BaseException:
            self.daemon.close()
            self._start()
            raise

    @property
    def log(self) -> list[str]:
        """What the daemon has logged in this test."""
        return self.daemon.log[self._logged :].splitlines(keepends=True)

    @property
    def warnings(self) -> list[str]:
        """The same without what is mere information."""
        return [line for line in self.log if " INFO " not in line]

    @property
    def peak(self) -> int:
        """How far resident memory has ever risen in this test, in bytes."""
        return self.status("VmHWM") - self._peak

    def assert_serving(self, *devices: str) -> None:
        """See these devices answer, or all of them."""
        for device in devices or self.DEVICES:
            with FrontEnd(connected(self.socket(device))).handshake() as fe:
                assert fe.command(encode(command(c.GetDisplayInfo)), response_size=408)

    def status(self, field: str) -> int:
        """A number of /proc/PID/status, memory in bytes."""
        text = Path(f"/proc/{self.daemon.pid}/status").read_text()
        [line] = [line for line in text.splitlines() if line.startswith(field + ":")]
        words = line.split()
        return int(words[1]) * (1024 if words[2:] == ["kB"] else 1)


@contextmanager
def front_end(siege: Siege, device: str = "a") -> Iterator[RogueRing]:
    """A front-end that may be hung up on, and its guest."""
    fe = rogue_front_end(siege.socket(device))
    try:
        yield RogueRing(fe)
    finally:
        with contextlib.suppress(OSError, AssertionError):
            fe.close()


@contextmanager
def rogue(siege: Siege, device: str = "a", size: int = 64) -> Iterator[RogueRing]:
    """A guest on a device, ready to misbehave."""
    with rogue_front_end(siege.socket(device), size=size) as fe:
        yield RogueRing(fe)
