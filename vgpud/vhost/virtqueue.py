"""One virtqueue of a session: its setup by the front-end, and its ring while that runs.

Source: the vhost-user specification, "Starting and stopping rings", and virtio 1.3, 2.7.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

import numpy as np

from vgpud.errors import GuestAddressError, PeerError, RingError
from vgpud.native.ring import FastPath
from vgpud.unix.fd import Fd
from vgpud.vhost import ring_eventfd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.pump import PUBLISH_AFTER, Handler, Pump, RequestSize
from vgpud.vhost.ring import Ring
from vgpud.vhost.ring_life import RingEvent, RingLife, step
from vgpud.vhost.ring_setup import RingSetup, RingState
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import MAX_QUEUE_SIZE, Chain

log = logging.getLogger(__name__)


class Virtqueue:
    """The virtqueue `name` of a device.

    The session calls `set_*` for the front-end's requests, and gives the queue to the device when
    it can start; the device calls `start` and `complete`.
    """

    def __init__(self, device: str, name: str, tasks: asyncio.TaskGroup) -> None:
        self.device = device
        self.name = name
        self.features = 0
        self.setup = RingSetup()
        self.life = RingLife.STOPPED
        self._fault = ""
        self._tasks = tasks
        self._memory = MemoryTable()
        self._pump: Pump | None = None
        self._former: Pump | None = None  # of a ring that broke: its handler may still be ending
        self._finished: deque[tuple[Chain, bytes]] = deque()  # not written yet, in order
        self._writing: asyncio.Handle | None = None
        self._in_flight = np.zeros(MAX_QUEUE_SIZE, np.uint8)

    @property
    def running(self) -> bool:
        """Whether the ring is being served."""
        return self.life is RingLife.RUNNING

    @property
    def fault(self) -> str | None:
        """Why the ring is broken; None while it is not."""
        return self._fault if self.life is RingLife.BROKEN else None

    # What the front-end sets

    def set_num(self, num: int) -> None:
        """Set the number of descriptors for the next start."""
        self.setup.num = num
        self._setup_changed()

    def set_base(self, base: int) -> None:
        """Set the available index to start from.

        0 is a driver that has not used the ring; another index continues after a pause of the VM.
        """
        self.setup.base, self.setup.fresh = base, base == 0
        self._setup_changed()

    def set_address(self, address: RingAddress) -> None:
        """Set the addresses of the ring.

        A running ring continues there: this is how a front-end turns logging on and off.
        """
        self.setup.address = address
        self._setup_changed()
        self._relocate()

    def set_memory(self, memory: MemoryTable) -> None:
        """Use another memory table; a running ring that is not in it breaks."""
        self._memory = memory
        self._relocate()

    def set_enabled(self, enabled: bool) -> None:
        """Set whether the ring may start; this does not stop a running one, but `stop` does."""
        self.setup.enabled = enabled
        self._setup_changed()

    def set_kick(self, kick: Fd | None) -> None:
        """Set the descriptor for the driver's kicks; None to poll the ring instead."""
        if self._pump is not None:
            self._pump.unwatch()
        if self.setup.kick is not None:
            self.setup.kick.close()
        self.setup.kick, self.setup.polled = kick, kick is None
        self._setup_changed()
        self._begin()

    def forget_kick(self) -> None:
        """Remove the kick descriptor; the ring can't start before it is set again."""
        self.set_kick(None)
        self.setup.polled = False
        self._setup_changed()

    def set_call(self, call: Fd | None) -> None:
        """Set the descriptor for calls to the driver; None for a driver that polls."""
        if self.setup.call is not None:
            self.setup.call.close()
        self.setup.call = call

    def set_err(self, err: Fd | None) -> None:
        """Set the descriptor that signals a broken ring to the front-end."""
        if self.setup.err is not None:
            self.setup.err.close()
        self.setup.err = err

    # What the device does

    def start(
        self,
        handler: Handler,
        fast_path: Callable[[], FastPath | None] | None = None,
        request_size: RequestSize | None = None,
    ) -> None:
        """Serve the ring, if it is ready: have `handler` called with each chain.

        `fast_path` returns the fast path that may execute requests without the handler at the
        moment, if there is one; `request_size` says how much of a long request `handler` is to get,
        by default all of it. A ring that is malformed, or not in guest memory, is broken.
        """
        setup = self.setup
        if self.life is not RingLife.READY or setup.address is None:
            return
        if setup.fresh:
            self._in_flight.fill(0)
        try:
            ring = Ring(
                self._memory,
                setup.address,
                setup.num,
                base=setup.base,
                features=self.features,
                in_flight=self._in_flight,
            )
        except (RingError, GuestAddressError) as error:
            self._break(error)
            return
        self.life = step(self.life, RingEvent.START)
        self.setup.fresh = False
        self._pump = Pump(
            ring,
            setup,
            self._memory,
            handler,
            fast_path,
            request_size,
            tasks=self._tasks,
            broken=self._break,
        )
        self._write_finished()
        if not self.running:  # the responses could not be written
            return
        log.debug(
            "queue started device=%s queue=%s base=%d num=%d",
            self.device,
            self.name,
            setup.base,
            setup.num,
        )

    def complete(self, chain: Chain, response: bytes, *, publish: bool = True) -> None:
        """Write a response into its chain, as far as it fits, and return the chain to the driver;
        for a stopped ring, when it is started again.

        Unless `publish`, the driver sees it after `publish`.
        """
        if self._pump is None or self._finished:
            self._finished.append((chain, response))
        else:
            self._pump.complete(chain, response, publish=publish)

    def publish(self) -> None:
        """Have the driver see what was answered."""
        if self._pump is not None:
            self._pump.publish()

    def forget_unanswered(self) -> None:
        """Drop the responses that are not written yet, because the driver has been reset."""
        self._finished.clear()
        self._in_flight.fill(0)

    async def halt(self) -> None:
        """Take no more chains, and cancel the handler that waits, if there is one.

        When this returns it has ended. So has the handler of a ring that broke.
        """
        for pump in (self._pump, self._former):
            if pump is not None:
                await pump.cancel()
        self._former = None

    async def stop(self) -> int:
        """Stop the ring; return the index of the first available entry that has not been taken.

        A handler may still call `complete`: the response is held until the ring is started again.
        """
        await self.halt()
        self._end()  # unless it broke meanwhile
        self.life = step(self.life, RingEvent.STOP)
        self._setup_changed()
        return self.setup.base

    def save(self) -> RingState:
        """Return the state of the ring, which must have been stopped."""
        assert self._pump is None, "the ring is running"
        setup = self.setup
        return RingState(
            setup.num, setup.address, setup.base, setup.fresh, self.features, tuple(self._finished)
        )

    def restore(self, state: RingState) -> None:
        """Take over a saved state; the ring starts when the front-end has set its descriptors."""
        setup = self.setup
        setup.num, setup.address = state.num, state.address
        setup.base, setup.fresh = state.base, state.fresh
        self.features = state.features
        self._finished = deque(state.finished)
        self._in_flight.fill(0)
        self._in_flight[[chain.head for chain, _ in state.finished]] = 1
        self._setup_changed()

    def close(self) -> None:
        """Close everything; the queue's tasks have ended, or are cancelled with their group."""
        self._end()
        self._former = None
        self._memory = MemoryTable()
        self._finished.clear()
        self.setup.close()

    def _setup_changed(self) -> None:
        self.life = step(self.life, RingEvent.SET if self.setup.complete else RingEvent.UNSET)

    def _write_finished(self) -> None:
        """Write the responses to chains that were taken before the ring was stopped, for a short
        time, and the rest in the loop's next turn; then take chains."""
        self._writing = None
        until = perf_counter() + PUBLISH_AFTER
        while self._pump is not None and self._finished:
            self._pump.complete(*self._finished.popleft(), publish=False)
            if perf_counter() >= until:
                break
        if self._pump is None:  # it broke
            return
        if self._finished:
            self._writing = asyncio.get_running_loop().call_soon(self._write_finished)
        self._pump.publish()
        self._begin()

    def _begin(self) -> None:
        """Have chains taken, once all responses to earlier ones have been written."""
        if self._pump is not None and not self._finished:
            self._pump.begin()

    def _relocate(self) -> None:
        if self._pump is not None and self.setup.address is not None:
            self._pump.relocate(self._memory, self.setup.address)

    def _end(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self._pump is not None:
            pump, self._pump = self._pump, None
            self.setup.base = pump.end()
            self._former = pump

    def _break(self, error: Exception) -> None:
        """Stop a malformed ring; the session and the other rings continue."""
        log.warning("queue stopped device=%s queue=%s: %s", self.device, self.name, error)
        self._end()
        self._fault = str(error)
        self.life = step(self.life, RingEvent.BREAK)
        if self.setup.err is not None:
            with suppress(PeerError):  # the ring stops even if that can't be signalled
                ring_eventfd.signal(self.setup.err)
