"""A guest for `vgpud bench ring`: its memory, and the driver's side of its queues.

The guest must not be what is measured. So all commands are encoded before, a batch is published by
one store, and answers are not parsed meanwhile. As in Linux, chains are indirect, of a request and
a response, and VIRTIO_F_EVENT_IDX decides about notifications. Source: virtio 1.3, 2.7 "Split
Virtqueues".
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
from vgpud.native.shared_words import SharedU16, full_fence
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix import eventfd
from vgpud.vhost.split_ring import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_ELEM

QUEUES: Final = (CONTROL_QUEUE, CURSOR_QUEUE)
QUEUE_SIZE: Final = 256
"""The size that QEMU uses."""
RESPONSE_SIZE: Final = 512
REQUEST_SIZE: Final = 512

_AVAIL: Final = QUEUE_SIZE * DESC.itemsize
_USED: Final = _AVAIL + PAGE_SIZE
_CHAINS: Final = _USED + PAGE_SIZE
_CHAIN_SIZE: Final = 64 + REQUEST_SIZE + RESPONSE_SIZE
_QUEUE_BYTES: Final = _CHAINS + QUEUE_SIZE * _CHAIN_SIZE


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """The guest-physical addresses of a queue."""

    desc: int
    avail: int
    used: int


class BenchGuest:
    """A guest's RAM with two queues and `extra` bytes for other use; a context manager.

    It is a `microvm.front_end.FrontEndGuest`. `memory` is the RAM's bytes.
    """

    queue_size: Final = QUEUE_SIZE

    def __init__(self, extra: int) -> None:
        self.extra = len(QUEUES) * _QUEUE_BYTES
        """The guest-physical address of the extra bytes."""
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

    def queue(self, index: int) -> RingAddresses:
        """Return the addresses of a queue."""
        start = index * _QUEUE_BYTES
        return RingAddresses(start, start + _AVAIL, start + _USED)

    def driver(self, index: int) -> Driver:
        """Return a driver of a queue, which must be its only one."""
        start = index * _QUEUE_BYTES
        return Driver(self, index, start)


class Driver:
    """The driver's side of one queue.

    Commands are loaded while the queue is idle. From then on each has its index as its name, and
    may be published again whenever it is not pending.
    """

    def __init__(self, guest: BenchGuest, index: int, start: int) -> None:
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
        """Build the chains of at most QUEUE_SIZE commands, which `publish` publishes in turn."""
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
        """Return the types of the first `count` commands' responses; 0 for those without one."""
        responses = self._memory[_CHAINS:][: count * _CHAIN_SIZE].reshape(count, _CHAIN_SIZE)
        first = responses[:, 64 + REQUEST_SIZE :][:, :4].copy().view("<u4")
        return set(first.reshape(-1).tolist())

    @property
    def waiting(self) -> int:
        """The number of published commands whose answers `done` has not counted yet."""
        return self._published - self._seen & 0xFFFF

    def publish(self, count: int) -> None:
        """Publish the next `count` commands, and kick the device unless it suppresses kicks.

        The number of loaded commands must divide QUEUE_SIZE, or their order would be broken.
        """
        old = self._published
        new = self._published = old + count & 0xFFFF
        self._avail_idx.store(new)
        # The index must be visible before the device's avail_event is read.
        full_fence()
        if new - self._avail_event.load() - 1 & 0xFFFF < count:
            eventfd.signal(self._kick)

    def publish_one(self, which: int) -> None:
        """Publish one command, given by its index."""
        self._available[self._published % QUEUE_SIZE] = which
        self.publish(1)

    def want(self, count: int) -> None:
        """Have the device signal when it has answered `count` commands since the last `done`."""
        self._used_event.store(self._seen + count - 1 & 0xFFFF)

    def answered(self) -> int:
        """Return the number of answers since the last `done`."""
        # used_event must be visible before the index is read, or both sides could wait.
        full_fence()
        return self._used_idx.load() - self._seen & 0xFFFF

    def done(self, count: int) -> None:
        """Count `count` answers as seen, in the order of the used ring."""
        self._seen = self._seen + count & 0xFFFF

    def done_one(self) -> int:
        """Count one answer as seen, and return the index of its command."""
        which = int(self._used["id"][self._seen % QUEUE_SIZE])
        self._seen = self._seen + 1 & 0xFFFF
        return which
