"""A guest that has made all of its commands before: what drives the rings in `vgpud bench ring`.

Owns the guest's memory and the driver's side of its queues. It must not be what is measured: a
batch of commands is published by one store, and there is nothing to be made or parsed meanwhile. As
Linux has them, chains are indirect, of a request and a response, and VIRTIO_F_EVENT_IDX says who is
to be woken when. Source: virtio 1.3, 2.7 "Split Virtqueues".
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np

from vgpud.gpu.wire.command_codec import Command, encode
from vgpud.gpu.wire.protocol import CONTROL_QUEUE, CURSOR_QUEUE
from vgpud.memory import memfd
from vgpud.memory.mapping import map_shared
from vgpud.native.core import SharedU16, full_fence
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix import eventfd
from vgpud.vhost.split_ring import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_ELEM

QUEUES: Final = (CONTROL_QUEUE, CURSOR_QUEUE)
QUEUE_SIZE: Final = 256
"""As QEMU has it."""
RESPONSE_SIZE: Final = 512
REQUEST_SIZE: Final = 512

_AVAIL: Final = QUEUE_SIZE * DESC.itemsize
_USED: Final = _AVAIL + PAGE_SIZE
_CHAINS: Final = _USED + PAGE_SIZE
_CHAIN_SIZE: Final = 64 + REQUEST_SIZE + RESPONSE_SIZE
_QUEUE_BYTES: Final = _CHAINS + QUEUE_SIZE * _CHAIN_SIZE


@dataclass(frozen=True, slots=True)
class Place:
    """Where a queue is: guest-physical addresses."""

    desc: int
    avail: int
    used: int


class Guest:
    """A guest's RAM with two queues in it, `extra` bytes of it for anything else; a context
    manager, and a `microvm.front_end.Guest`. `memory` is the RAM's bytes."""

    queue_size: Final = QUEUE_SIZE

    def __init__(self, extra: int) -> None:
        self.extra = len(QUEUES) * _QUEUE_BYTES
        """Where the extra bytes begin: guest-physical."""
        self.ram_size = -(-(self.extra + extra) // PAGE_SIZE) * PAGE_SIZE
        with ExitStack() as cleanup:
            self.ram = cleanup.enter_context(memfd.create("bench-ram", self.ram_size))
            self.memory = map_shared(self.ram, self.ram_size)
            self.kicks = [cleanup.enter_context(eventfd.create()) for _ in QUEUES]
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def queue(self, index: int) -> Place:
        """Where a queue is."""
        start = index * _QUEUE_BYTES
        return Place(start, start + _AVAIL, start + _USED)

    def driver(self, index: int) -> Driver:
        """The driver of a queue; one is enough."""
        start = index * _QUEUE_BYTES
        return Driver(self, index, start)


class Driver:
    """The driver's side of one queue.

    Commands are loaded while the queue is idle; from then on each of them is known by its place
    among them, and may be published again whenever it is not under way.
    """

    def __init__(self, guest: Guest, index: int, start: int) -> None:
        memory = guest.memory[start : start + _QUEUE_BYTES]
        self._start = start
        self._memory = memory
        self._kick = guest.kicks[index]
        self._descriptors = memory[:_AVAIL].view(DESC)
        self._available = memory[_AVAIL + 4 :][: 2 * QUEUE_SIZE].view("<u2")
        self._used = memory[_USED + 4 :][: USED_ELEM.itemsize * QUEUE_SIZE].view(USED_ELEM)
        self._avail_idx = SharedU16(memory, _AVAIL + 2)
        self._used_event = SharedU16(memory, _AVAIL + 4 + 2 * QUEUE_SIZE)
        self._used_idx = SharedU16(memory, _USED + 2)
        self._avail_event = SharedU16(memory, _USED + 4 + USED_ELEM.itemsize * QUEUE_SIZE)
        self._published = self._seen = 0

    def load(self, requests: Sequence[Command]) -> None:
        """Makes the chains of commands, QUEUE_SIZE at most, and has `publish` go around them."""
        assert not self.waiting
        for head, command in enumerate(requests):
            data = encode(command)
            assert len(data) <= REQUEST_SIZE
            chain = _CHAINS + head * _CHAIN_SIZE
            request = chain + 64
            response = request + REQUEST_SIZE
            table = self._memory[chain : chain + 2 * DESC.itemsize].view(DESC)
            table[0] = self._start + request, len(data), DESC_F_NEXT, 1
            table[1] = self._start + response, RESPONSE_SIZE, DESC_F_WRITE, 0
            self._memory[request : request + len(data)] = np.frombuffer(data, np.uint8)
            self._memory[response : response + RESPONSE_SIZE] = 0
            self._descriptors[head] = self._start + chain, 2 * DESC.itemsize, DESC_F_INDIRECT, 0
        order = np.arange(QUEUE_SIZE)
        self._available[(self._published + order) % QUEUE_SIZE] = order % len(requests)

    def response_types(self, count: int) -> set[int]:
        """What the first `count` commands were answered with so far; 0 for those that were not."""
        responses = self._memory[_CHAINS:][: count * _CHAIN_SIZE].reshape(count, _CHAIN_SIZE)
        first = responses[:, 64 + REQUEST_SIZE :][:, :4].copy().view("<u4")
        return set(first.reshape(-1).tolist())

    @property
    def waiting(self) -> int:
        """How many commands are published and not answered, as far as `done` has looked."""
        return self._published - self._seen & 0xFFFF

    def publish(self, count: int) -> None:
        """Hands over the next `count` commands, and wakes the device if it wants to be woken.

        A multiple of QUEUE_SIZE is a multiple of what was loaded, or the order would be broken.
        """
        old = self._published
        new = self._published = old + count & 0xFFFF
        self._avail_idx.store(new)
        # The index must be visible before the device's wish is read.
        full_fence()
        if new - self._avail_event.load() - 1 & 0xFFFF < count:
            eventfd.signal(self._kick)

    def publish_one(self, which: int) -> None:
        """Hands over one command, whichever."""
        self._available[self._published % QUEUE_SIZE] = which
        self.publish(1)

    def want(self, count: int) -> None:
        """Has the device signal when it has answered `count` more, seen from the last `done`."""
        self._used_event.store(self._seen + count - 1 & 0xFFFF)

    def answered(self) -> int:
        """How many answers there are since the last `done`."""
        # As in `publish`: our wish first, or both sides could wait for each other.
        full_fence()
        return self._used_idx.load() - self._seen & 0xFFFF

    def done(self, count: int) -> None:
        """Has seen `count` answers, whatever they are to."""
        self._seen = self._seen + count & 0xFFFF

    def done_one(self) -> int:
        """Takes one answer; the command that it is to."""
        which = int(self._used["id"][self._seen % QUEUE_SIZE])
        self._seen = self._seen + 1 & 0xFFFF
        return which
