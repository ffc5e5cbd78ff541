"""A split ring in plain Python, for tests of `vhost.split_ring`: the driver's side of it, and what
a chain of descriptors means.

It shares nothing with the code under test but its views' names, on purpose: the two are compared.
Source: virtio 1.3, 2.7.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import GuestAddressError
from vgpud.vhost.split_ring import DESC, USED_ELEM, RingViews, SplitRing

GPA = 0x4000_0000
"""Where guest memory begins."""

RAM_SIZE = 1 << 17
ENTRY = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
TURN = 1 << 16

Descriptor = tuple[int, int, int, int]
"""Address, length, flags, next."""

Buffers = tuple[tuple[int, int], ...]


class MalformedError(Exception):
    """The specification allows no such chain."""


@dataclass(frozen=True)
class Word:
    """An `Index` of `vgpud.vhost.split_ring`."""

    bytes: NDArray[np.uint8]
    at: int

    def load(self) -> int:
        return int.from_bytes(self.bytes[self.at : self.at + 2].tobytes(), "little")

    def store(self, value: int) -> None:
        assert 0 <= value < TURN
        self.bytes[self.at : self.at + 2] = (value & 0xFF, value >> 8)


class Ram:
    """Guest memory in one piece from `GPA` on, with a ring of `num` descriptors at its start."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.bytes = np.zeros(RAM_SIZE, np.uint8)
        self.reads: list[int] = []
        self.fences = 0
        self.avail = num * ENTRY.size
        self.used_event = self.avail + 4 + 2 * num
        self.used = -(-(self.used_event + 2) // 4) * 4
        self.avail_event = self.used + 4 + 8 * num
        self.end = self.avail_event + 2

    def views(self) -> RingViews:
        ram, avail, used = self.bytes, self.avail, self.used
        return RingViews(
            descriptors=ram[:avail].view(DESC),
            available=ram[avail + 4 : self.used_event].view(np.uint16),
            used=ram[used + 4 : self.avail_event].view(USED_ELEM),
            avail_flags=Word(ram, avail),
            avail_idx=Word(ram, avail + 2),
            used_event=Word(ram, self.used_event),
            used_flags=Word(ram, used),
            used_idx=Word(ram, used + 2),
            avail_event=Word(ram, self.avail_event),
            fence=self._fence,
        )

    def move(self) -> RingViews:
        """Puts the memory elsewhere in the host; whoever writes to the old place is found out."""
        self.bytes, old = self.bytes.copy(), self.bytes
        old[:] = 0xEE
        old.setflags(write=False)
        return self.views()

    def read(self, gpa: int, length: int) -> bytes:
        """The `Memory` of a ring."""
        at = gpa - GPA
        self.reads.append(length)
        if not 0 <= at <= at + length <= RAM_SIZE:
            raise GuestAddressError(f"{length} bytes at {gpa:#x}")
        return self.bytes[at : at + length].tobytes()

    def load(self, at: int) -> int:
        return Word(self.bytes, at).load()

    def store(self, at: int, value: int) -> None:
        Word(self.bytes, at).store(value % TURN)

    def describe(self, at: int, table: Sequence[Descriptor]) -> None:
        """Writes descriptors, `at` bytes into memory."""
        data = b"".join(ENTRY.pack(*descriptor) for descriptor in table)
        self.bytes[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def used_ring(self) -> bytes:
        return self.bytes[self.used : self.end].tobytes()

    def _fence(self) -> None:
        self.fences += 1


class ModelDriver:
    """A driver that keeps to the rules. Everything starts at index `base`, to have it wrap soon."""

    def __init__(self, ram: Ram, *, base: int, event_idx: bool) -> None:
        self.ram, self.event_idx = ram, event_idx
        self.free = list(range(ram.num))
        self.chains: dict[int, tuple[int, ...]] = {}
        self.avail_idx = self.used_idx = self.decided_idx = base
        for index in (ram.avail + 2, ram.used + 2, ram.used_event, ram.avail_event):
            ram.store(index, base)

    def submit(self, buffers: Sequence[tuple[int, int, bool]], direct: int) -> int:
        """Makes a chain of (address, length, writable) available; returns its head.

        The first `direct` of them have descriptors in the queue, the rest in an indirect table.
        """
        table = len(buffers) > direct
        slots = tuple(self.free.pop() for _ in range(direct + table))
        entries: list[Descriptor] = [
            (addr, length, WRITE * writable, 0) for addr, length, writable in buffers
        ]
        if table:
            at = self.ram.end + (-self.ram.end % 16) + slots[-1] * 256
            self.ram.describe(at, _linked(entries[direct:], range(len(entries) - direct)))
            entries[direct:] = [(GPA + at, (len(entries) - direct) * ENTRY.size, INDIRECT, 0)]
        for slot, entry in zip(slots, _linked(entries, slots), strict=True):
            self.ram.describe(slot * ENTRY.size, [entry])
        self.chains[slots[0]] = slots
        self.ram.store(self.ram.avail + 4 + 2 * (self.avail_idx % self.ram.num), slots[0])
        self.avail_idx = (self.avail_idx + 1) % TURN
        self.ram.store(self.ram.avail + 2, self.avail_idx)
        return slots[0]

    def wants_kick(self) -> bool:
        """Whether the device asked to be told of what was made available since the last call."""
        made = _from_to(self.decided_idx, self.avail_idx)
        self.decided_idx = self.avail_idx
        if self.event_idx:
            return self.ram.load(self.ram.avail_event) in made
        return bool(made) and not self.ram.load(self.ram.used) & 1

    def collect(self) -> list[tuple[int, int]]:
        """Takes what the device has used: (head, bytes written)."""
        found = []
        while self.used_idx != self.ram.load(self.ram.used + 2):
            at = self.ram.used + 4 + 8 * (self.used_idx % self.ram.num)
            head, written = struct.unpack("<II", self.ram.bytes[at : at + 8].tobytes())
            self.free += self.chains.pop(head)
            self.used_idx = (self.used_idx + 1) % TURN
            found.append((head, written))
        return found


def _linked(entries: Sequence[Descriptor], slots: Sequence[int]) -> list[Descriptor]:
    linked = [
        (addr, length, flags | NEXT, following)
        for (addr, length, flags, _), following in zip(entries, slots[1:], strict=False)
    ]
    return [*linked, entries[-1]]


def _from_to(old: int, new: int) -> set[int]:
    return {(old + step) % TURN for step in range((new - old) % TURN)}


def meaning(ram: Ram, head: int, *, indirect: bool) -> tuple[Buffers, Buffers]:
    """What is to be read and what to be written in the chain at `head`; raises `MalformedError`.

    2.7.5.3.2: normal descriptors may come before the one that refers to an indirect table, and that
    one's WRITE flag is to be ignored.
    """
    raw = ram.bytes[: ram.num * ENTRY.size].tobytes()
    buffers = _follow(ram, raw, head, indirect=indirect)
    kinds = [writable for _, _, writable in buffers]
    if kinds != sorted(kinds):
        raise MalformedError("to be read, after one to be written")
    readable = tuple((addr, length) for addr, length, writable in buffers if not writable)
    return readable, tuple((addr, length) for addr, length, writable in buffers if writable)


def _follow(ram: Ram, raw: bytes, start: int, *, indirect: bool) -> list[tuple[int, int, bool]]:
    table: list[Descriptor] = list(ENTRY.iter_unpack(raw))
    found: list[tuple[int, int, bool]] = []
    todo: int | None = start
    seen: set[int] = set()
    while todo is not None:
        if todo in seen or todo >= len(table):
            raise MalformedError(f"descriptor {todo} of {len(table)}, {len(seen)} seen")
        seen.add(todo)
        addr, length, flags, following = table[todo]
        if flags & INDIRECT:
            at = addr - GPA
            whole = length > 0 and length % ENTRY.size == 0
            if not indirect or flags & NEXT or not whole or not 0 <= at <= RAM_SIZE - length:
                raise MalformedError(f"indirect table {table[todo]}")
            inner = ram.bytes[at : at + length].tobytes()
            return found + _follow(ram, inner, 0, indirect=False)
        found.append((addr, length, bool(flags & WRITE)))
        todo = following if flags & NEXT else None
    return found


def push(ring: SplitRing, head: int, written: int) -> None:
    """Have a chain published as used, with `written` bytes in its writable buffers."""
    ring.put(head, written)
    ring._store_used()
