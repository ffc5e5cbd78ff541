"""The pump: takes chains of a running ring, gives them to the handler, and publishes the responses.

One function does that, `_run`. The event loop calls it when the driver has kicked, and when other
tasks have had their time. It returns when no chain is left, when a handler has to wait, or when its
time is up; so one queue can't keep another from being served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from time import perf_counter
from typing import Any, Final

from vgpud.errors import GuestAddressError, PeerError, RingError, VgpudError, stored
from vgpud.native.ring import FastPath
from vgpud.pace import paced
from vgpud.vhost import ring_eventfd
from vgpud.vhost.coalescing import POLL, POLLING, Coalescing
from vgpud.vhost.fault_watch import truncated
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring import REQUEST_LIMIT, Ring
from vgpud.vhost.ring_setup import RingSetup
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import Chain

Handler = Callable[[Chain, bytes], Coroutine[Any, Any, None] | None]
"""A function of a chain and its readable bytes, which answers now or later by `Virtqueue.complete`.
If it returns a coroutine, that is awaited before the next chain is taken, and is cancelled when the
ring stops."""

RequestSize = Callable[[bytes], int]
"""A function of the first bytes of a long request, which returns how many bytes of it the handler
is to get. Reading them takes time."""

QUANTUM: Final = 0.0005
"""Seconds after which other tasks, and so other devices, are served."""

PUBLISH_AFTER: Final = 0.0005
"""Seconds that answers are held to be published together with others."""

POLL_INTERVAL: Final = 0.001
"""Seconds between two polls of a ring whose front-end gave no kick descriptor
(VHOST_USER_VRING_NOFD_MASK)."""


class Pump:
    """Drives `ring`, with the descriptors of `setup`, in `memory`.

    `broken` is called, and has to end the pump, where the ring is malformed or its memory is gone.
    Every other error ends the task group.
    """

    def __init__(
        self,
        ring: Ring,
        setup: RingSetup,
        memory: MemoryTable,
        handler: Handler,
        fast_path: Callable[[], FastPath | None] | None,
        request_size: RequestSize | None,
        *,
        tasks: asyncio.TaskGroup,
        broken: Callable[[Exception], None],
    ) -> None:
        self._ring = ring
        self._num = setup.num  # of the running ring: the setup may change meanwhile
        self._setup = setup
        self._memory = memory
        self._handler = handler
        self._fast_path = fast_path
        self._request_size = request_size
        self._tasks = tasks
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._taken: deque[tuple[Chain, bytes]] = deque()  # not handled yet
        self._coalescing = Coalescing()
        self._batching = False  # answers are held for others
        self._scheduled: asyncio.Handle | None = None
        self._waiting: asyncio.Task[None] | None = None  # awaits `_pending`
        self._pending: Coroutine[Any, Any, None] | None = None  # of a handler that waits
        self._handled = 0  # the head of the last chain that was given to the handler
        self._ended = False

    def begin(self) -> None:
        """Have `_run` called soon, and whenever the driver kicks on the setup's descriptor.

        Soon, because the driver does not kick again for chains that are available already.
        """
        kick = self._setup.kick
        if kick is not None:
            try:
                self._loop.add_reader(kick.fileno(), self._on_kick)
            except OSError as error:  # such as a plain file, which epoll refuses
                raise PeerError(f"can't wait for kicks: {error.strerror}") from error
        self._schedule()

    def unwatch(self) -> None:
        """Stop waiting for kicks."""
        if self._setup.kick is not None:
            self._loop.remove_reader(self._setup.kick.fileno())

    def relocate(self, memory: MemoryTable, address: RingAddress) -> None:
        """Continue at another address of the ring, in another memory table."""
        self._memory = memory
        try:
            self._ring.relocate(memory, address)
        except (RingError, GuestAddressError) as error:
            self._broken(error)

    def complete(self, chain: Chain, response: bytes, *, publish: bool = True) -> None:
        """Write a response, and return its chain to the driver; unless `publish`, it sees that
        after `publish`."""
        try:
            self._ring.answer(chain, response)
        except GuestAddressError as error:
            self._broken(error)
            return
        if publish:
            self.publish()

    def publish(self) -> None:
        """Publish what has been answered, unless that is done soon anyway."""
        if not self._batching:
            self._publish()

    async def cancel(self) -> None:
        """Take no more chains; cancel the handler that waits, if there is one, and wait until it
        has ended."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])

    def end(self) -> int:
        """End the pump; return the index of the first available entry that is not answered."""
        self._ended = True
        self.unwatch()
        if self._scheduled is not None:
            self._scheduled.cancel()
        unanswered = [chain.head for chain, _ in self._taken]
        if self._waiting is None or self._waiting is not asyncio.current_task(self._loop):
            if self._waiting is not None:
                self._waiting.cancel()
            if self._pending is not None:
                unanswered.append(self._handled)
                if getcoroutinestate(self._pending) == CORO_CREATED:
                    self._pending.close()
        # Not handled, or not answered: the next start takes them again.
        self._ring.put_back(unanswered)
        self._taken.clear()
        self._publish()
        return self._ring.next_avail

    def _schedule(self) -> None:
        if self._scheduled is None and self._waiting is None and not self._ended:
            self._scheduled = self._loop.call_soon(self._run)

    def _on_kick(self) -> None:
        assert self._setup.kick is not None
        try:
            ring_eventfd.drain(self._setup.kick)
        except PeerError as error:
            self._fail(error)
            return
        # Called directly, since scheduling it costs as much as a few commands.
        if self._scheduled is None and self._waiting is None:
            self._run()

    def _run(self) -> None:
        """Handle chains until none is left, a handler waits, or time is up."""
        self._scheduled = None
        if self._ended:
            return
        pending, empty = self._handle(perf_counter() + QUANTUM)
        if pending is None:
            self._wait_for_chains(empty=empty)
            return
        self._pending = pending
        waiting = self._wait()
        try:
            self._waiting = self._tasks.create_task(waiting)
            self._waiting.add_done_callback(self._waited)
        except RuntimeError:  # the group is being cancelled
            waiting.close()
            pending.close()

    async def _wait(self) -> None:
        """Wait for a handler, then handle the chains after its own as `_run` does."""
        until = perf_counter() + QUANTUM
        empty = False
        while self._pending is not None:
            await self._pending
            self._pending = None
            if perf_counter() >= until:
                await asyncio.sleep(0)
                until = perf_counter() + QUANTUM
            if self._ended:
                return
            self._pending, empty = self._handle(until)
        self._waiting = None
        self._wait_for_chains(empty=empty)

    def _waited(self, task: asyncio.Task[None]) -> None:
        """Forget a task that has ended: where it was cancelled, it refers to all of its frames."""
        if self._waiting is task:
            self._waiting = None
            self._ended = True  # it did not get to its end

    def _wait_for_chains(self, *, empty: bool) -> None:
        """Have `_run` called again: on a kick, by a timer, or when other tasks have run."""
        if not empty:
            self._schedule()
        elif self._setup.polled and not self._ended:
            self._scheduled = self._loop.call_later(POLL_INTERVAL, self._run)

    def _handle(self, until: float) -> tuple[Coroutine[Any, Any, None] | None, bool]:
        """Handle chains as `_handle_all` does; an error ends the ring or the session."""
        try:
            pending, empty = self._handle_all(until)
        except (RingError, GuestAddressError) as error:
            if self._memory.faulted:  # the ring itself may have become zeros
                self._fail(truncated())
            else:
                self._broken(error)
            return None, True
        except Exception as error:
            self._fail(error)
            return None, True
        if self._ended and pending is not None:
            pending.close()
            return None, True
        return pending, empty

    def _handle_all(self, until: float) -> tuple[Coroutine[Any, Any, None] | None, bool]:
        """Handle chains; return a coroutine to wait for, if any, and whether no chain is left and
        the driver kicks for the next."""
        ring, coalescing = self._ring, self._coalescing
        ring.disable_notifications()
        polled_until = perf_counter() + POLLING
        while True:
            pending, empty = self._handle_taken(until)
            if self._memory.faulted:
                if pending is not None:
                    pending.close()
                raise truncated()
            if not empty:
                return pending, False
            if coalescing.may_hold(ring.unpublished, self._num):
                if perf_counter() >= polled_until:
                    return None, False
                more = ring.poll(POLL)
                coalescing.polled(more=more)
                if more:
                    continue
            self._publish()
            if not ring.enable_notifications():
                return None, True
            ring.disable_notifications()

    def _handle_taken(self, until: float) -> tuple[Coroutine[Any, Any, None] | None, bool]:
        """Handle chains without polling; return what `_handle_all` does."""
        ring, taken, handler, coalescing = (
            *(self._ring, self._taken, self._handler),
            self._coalescing,
        )
        publish_at = 0.0
        self._batching = True
        try:
            while True:
                if not taken:
                    taken.extend(ring.take(self._fast_path and self._fast_path()))
                    if ring.served:
                        coalescing.add(ring.served)
                        if not coalescing.may_hold(ring.unpublished, self._num):
                            self._publish()
                    if not taken:
                        if not ring.served:
                            return None, True
                        if perf_counter() >= until:
                            return None, False
                        continue
                coalescing.end()
                chain, request = taken.popleft()
                self._handled = chain.head
                pending = (self._handle_long if chain.readable else handler)(chain, request)
                now = perf_counter()
                if pending is not None or self._ended or now >= until:
                    return pending, False
                if now >= publish_at:
                    if publish_at:
                        self._publish()
                    publish_at = now + PUBLISH_AFTER
        finally:
            self._batching = False
            if not coalescing.active and not self._ended:
                self._publish()

    def _handle_long(self, chain: Chain, begin: bytes) -> Coroutine[Any, Any, None] | None:
        """Have a long request handled, of which only the beginning has been read."""
        size = REQUEST_LIMIT if self._request_size is None else self._request_size(begin)
        if size > len(begin):
            return self._read_and_handle(chain, begin, size)
        return self._handler(chain._replace(readable=()), begin)

    async def _read_and_handle(self, chain: Chain, begin: bytes, size: int) -> None:
        error: Exception | None = None
        request = b""
        try:
            request = await paced(self._ring.read_steps(chain, begin, size))
        except GuestAddressError as caught:
            error = caught
        if self._memory.faulted:
            self._fail(truncated())
        elif error is not None:
            self._broken(error)
        if self._ended:
            return
        pending = self._handler(chain._replace(readable=()), request)
        if pending is not None:
            await pending

    def _publish(self) -> None:
        """Publish the answers, and interrupt the driver if it wants that."""
        self._coalescing.published()
        if self._ring.publish() and self._setup.call is not None:
            try:
                ring_eventfd.signal(self._setup.call)
            except PeerError as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the session with an error, from a callback of the event loop."""
        self._ended = True
        self.unwatch()
        failure = _raise(stored(error) if isinstance(error, VgpudError) else error)
        try:
            self._tasks.create_task(failure)
        except RuntimeError:  # it is ending already
            failure.close()


async def _raise(error: Exception) -> None:
    try:
        raise error
    finally:
        del error  # it refers to this frame
