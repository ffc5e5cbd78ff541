"""One virtqueue of a session: from SET_VRING_* to a task that drains the ring whenever the driver
kicks.

Owns the ring's descriptors (kick, call, err) and its task. What is in a chain is the handler's
business. Source: the vhost-user specification, "Starting and stopping rings", and virtio 1.3, 2.7.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import perf_counter
from typing import Any

from vgpud.errors import GuestAddressError, PeerError, RingError
from vgpud.gpu.transfers import Transfers
from vgpud.rate_limit import RateLimit
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd
from vgpud.vhost.coalescing import NAP, NAPPING, Stream
from vgpud.vhost.guest_memory import GuestMemory
from vgpud.vhost.native_ring import NativeRing
from vgpud.vhost.ring_setup import RingSetup
from vgpud.vhost.split_ring import Chain
from vgpud.vhost.vring import RingAddress

log = logging.getLogger(__name__)

Handler = Callable[[Chain, bytes], Coroutine[Any, Any, None] | None]
"""Called with a chain and its readable bytes. It answers now or later by `VirtQueue.complete`; a
coroutine that it returns is waited for before the next chain is taken, and is cancelled when the
ring stops."""

QUANTUM = 0.002
"""Seconds after which other tasks, and so other devices, get their turn."""

PUBLISH_AFTER = 0.0005
"""Seconds that answers wait for others to be published with."""

POLL_INTERVAL = 0.001
"""Seconds between looks at a ring whose front-end gave no kick descriptor
(VHOST_USER_VRING_NOFD_MASK)."""


class VirtQueue:
    """A queue `name` of a device; `memory` is the session's, which may be replaced while the ring
    runs."""

    def __init__(
        self,
        device: str,
        name: str,
        memory: GuestMemory,
        handler: Handler,
        tasks: asyncio.TaskGroup,
        transfers: Callable[[], Transfers | None] | None = None,
    ) -> None:
        """`transfers` says which commands may be done without the handler at the moment."""
        self.setup = RingSetup()
        self._device = device
        self._name = name
        self._memory = memory
        self._handler = handler
        self._tasks = tasks
        self._transfers = transfers
        self._num = 0  # of the ring that runs, whatever is said meanwhile
        self._ring: NativeRing | None = None
        self._taken: deque[tuple[Chain, bytes]] = deque()  # not handled yet
        self._task: asyncio.Task[None] | None = None
        self._kicked = asyncio.Event()
        self._complaints = RateLimit()
        self._draining = False
        self._stream = Stream()
        self._waits = False  # the task, for kicks
        self._waiting: Coroutine[Any, Any, None] | None = None  # to be awaited by the task
        self._failure: Exception | None = None  # found where nobody could catch it
        self._loop = asyncio.get_running_loop()

    @property
    def running(self) -> bool:
        """Whether the ring is being served."""
        return self._ring is not None

    @property
    def ready(self) -> bool:
        """Whether all has been said that it takes to start."""
        setup = self.setup
        signalled = setup.kick is not None or setup.polled
        return bool(setup.num and setup.address and setup.enabled and signalled)

    def start(self, features: int) -> None:
        """Starts the ring if all that it needs has been said and it does not run yet."""
        setup = self.setup
        if self._ring is not None or not self.ready or setup.address is None:
            return
        self._num = setup.num
        try:
            self._ring = NativeRing.open(
                self._memory, setup.address, setup.num, base=setup.base, features=features
            )
        except (RingError, GuestAddressError) as error:
            self._break(error)
            return
        finished, setup.finished = setup.finished, []
        for chain, response in finished:
            self.complete(chain, response)
        if not self.running:  # they could not be written any more
            return
        if setup.kick is not None:
            self._watch(setup.kick)
        self._kicked.set()  # what was made available before we looked is not kicked for again
        name = f"{self._device}/{self._name}"
        self._task = self._tasks.create_task(self._run(self._ring), name=name)
        log.debug(
            "queue started device=%s queue=%s base=%d num=%d",
            self._device,
            self._name,
            setup.base,
            setup.num,
        )

    async def stop(self) -> int:
        """Stops the ring; returns the index of the first available entry that has not been taken
        up.

        What a handler has yet to answer is kept: `complete` holds it back until the ring is started
        again.
        """
        if self._ring is None:
            return self.setup.base
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._close()
        return self.setup.base

    def remap(self) -> None:
        """Finds the ring again after the memory table has changed."""
        if self._ring is None or self.setup.address is None:
            return
        try:
            self._ring.relocate(self.setup.address)
        except (RingError, GuestAddressError) as error:
            self._break(error)

    def complete(self, chain: Chain, response: bytes) -> None:
        """Writes a response into its chain, as much as there is room for, and hands the chain back
        to the driver."""
        ring = self._ring
        if ring is None:
            self.setup.finished.append((chain, response))
            return
        try:
            ring.answer(chain, response)
        except GuestAddressError as error:
            self._break(error)
            return
        if not self._draining:  # else once for all that is answered in one go
            self._notify()

    def _notify(self) -> None:
        """Publishes what was completed, and interrupts the driver if it wants that."""
        self._stream.published()
        if self._ring is not None and self._ring.publish() and self.setup.call is not None:
            try:
                eventfd.signal(self.setup.call)
            except PeerError as error:
                self._failure = error
                self._kicked.set()

    def set_kick(self, kick: Fd | None) -> None:
        """Takes the descriptor that the driver's kicks come through; None means that the ring is to
        be polled."""
        old = self.setup.kick
        if old is not None:
            self._loop.remove_reader(old.fileno())
            old.close()
        self.setup.kick, self.setup.polled = kick, kick is None
        if self._ring is not None:
            if kick is not None:
                self._watch(kick)
            self._kicked.set()

    def drop_kick(self) -> None:
        """Forgets how the driver kicks: the ring can't be started before that is said anew."""
        self.set_kick(None)
        self.setup.polled = False

    def set_call(self, call: Fd | None) -> None:
        """Takes the descriptor that interrupts the driver; None for a driver that polls."""
        if self.setup.call is not None:
            self.setup.call.close()
        self.setup.call = call

    def set_err(self, err: Fd | None) -> None:
        """Takes the descriptor that tells the front-end of a broken ring."""
        if self.setup.err is not None:
            self.setup.err.close()
        self.setup.err = err

    def set_address(self, address: RingAddress) -> None:
        """Takes the ring's place; one that runs goes on there (that is how logging is turned on and
        off)."""
        self.setup.address = address
        if self._ring is not None:
            self.remap()

    def forget_unanswered(self) -> None:
        """Forgets what is left to answer: the driver that asked is gone."""
        self.setup.finished.clear()

    def close(self) -> None:
        """Closes everything; the task has ended by then, or is about to be cancelled with its
        group."""
        self._close()
        for fd in (self.setup.kick, self.setup.call, self.setup.err):
            if fd is not None:
                fd.close()

    def _close(self) -> None:
        if self._ring is not None:
            self._put_back()
            if self._waiting is not None:  # not begun
                self._ring.put_back()
                self._waiting.close()
                self._waiting = None
            self._notify()
            self.setup.base = self._ring.next_avail
        self._ring = self._task = None
        if self.setup.kick is not None:
            self._loop.remove_reader(self.setup.kick.fileno())

    def _watch(self, kick: Fd) -> None:
        try:
            self._loop.add_reader(kick.fileno(), self._on_kick, kick)
        except OSError as error:  # such as a plain file, which epoll refuses
            raise PeerError(f"can't wait for kicks: {error.strerror}") from error

    def _on_kick(self, kick: Fd) -> None:
        try:
            eventfd.drain(kick)
        except PeerError as error:
            self._loop.remove_reader(kick.fileno())
            self._failure = error
        quiet = self._waits and self._waiting is None and self._failure is None
        if quiet and self._ring is not None:
            self._serve(self._ring)
        else:
            self._kicked.set()

    def _serve(self, ring: NativeRing) -> None:
        """Handles what was kicked for right here, since to wake the task costs as much as a few
        commands. What is to be waited for, takes long or ends the session is left to the task."""
        try:
            try:
                done = self._turn(ring, perf_counter() + QUANTUM)
            except (RingError, GuestAddressError) as error:
                self._check_memory()  # zeros in its place would explain it
                self._break(error)
                return
        except Exception as error:
            self._failure = error
            done = False
        if not done:
            self._kicked.set()

    def _break(self, error: Exception) -> None:
        """Stops a ring that can't be trusted any more; the session and the other rings go on."""
        if self._complaints.allows():
            suffix = self._complaints.suffix()
            log.warning(
                "queue stopped device=%s queue=%s: %s%s", self._device, self._name, error, suffix
            )
        task = self._task
        self._close()
        if self.setup.err is not None:
            with suppress(PeerError):  # one that can't be told has the ring stopped all the same
                eventfd.signal(self.setup.err)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _run(self, ring: NativeRing) -> None:
        try:
            while True:
                await self._drain(ring)
                if self._ring is not ring:
                    return
                await self._wait()
        except (RingError, GuestAddressError) as error:
            self._check_memory()  # zeros in its place would explain it
            self._break(error)

    def _check_memory(self) -> None:
        if self._memory.faulted:
            raise PeerError("the front-end truncated the memory that it shared")

    async def _wait(self) -> None:
        self._waits = True
        try:
            if self.setup.polled:
                await asyncio.sleep(POLL_INTERVAL)
            else:
                await self._kicked.wait()
        finally:
            self._waits = False
        self._kicked.clear()
        if self._failure is not None:
            raise self._failure

    async def _drain(self, ring: NativeRing) -> None:
        until = perf_counter() + QUANTUM
        while self._ring is ring:
            if self._waiting is None and self._turn(ring, until):
                return
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                try:
                    await waiting
                except asyncio.CancelledError:
                    self._put_back()
                    ring.put_back()  # not answered: whoever starts the ring again takes it up anew
                    raise
            if waiting is None or perf_counter() >= until:
                await asyncio.sleep(0)
                until = perf_counter() + QUANTUM

    def _turn(self, ring: NativeRing, until: float) -> bool:
        """Handles chains until time is up, one is to be waited for (`_waiting` is that), or none is
        left and the driver kicks for the next (True)."""
        ring.disable_kicks()
        rouse = perf_counter() + NAPPING
        while True:
            empty = self._handle_taken(ring, until)
            if self._memory.faulted and self._waiting is not None:
                self._waiting.close()
                self._waiting = None
            self._check_memory()
            if not empty:
                return False
            if self._stream.may_hold(ring.unpublished, self._num):
                if perf_counter() >= rouse:
                    return False
                more = ring.nap(NAP)
                self._stream.woke(more=more)
                if more:
                    continue
            self._notify()
            if not ring.enable_kicks():
                return True
            ring.disable_kicks()

    def _handle_taken(self, ring: NativeRing, until: float) -> bool:
        """Handles chains as `_turn` does; True if none is left."""
        taken, handler = self._taken, self._handler
        publish_at = 0.0
        self._draining = True
        try:
            while True:
                if not taken:
                    taken.extend(ring.take(self._transfers and self._transfers()))
                    if ring.served:
                        self._stream.add(ring.served)
                        if not self._stream.may_hold(ring.unpublished, self._num):
                            self._notify()
                    if not taken:
                        if not ring.served:
                            return True
                        if perf_counter() >= until:
                            return False
                        continue
                self._stream.end()
                self._waiting = handler(*taken.popleft())
                now = perf_counter()
                if self._waiting is not None or self._ring is not ring or now >= until:
                    return False
                if now >= publish_at:
                    if publish_at:
                        self._notify()
                    publish_at = now + PUBLISH_AFTER
        finally:
            self._draining = False
            if not self._stream.flows:
                self._notify()

    def _put_back(self) -> None:
        """Leaves what was taken and not handled to whoever starts the ring again."""
        if self._ring is not None:
            self._ring.put_back(len(self._taken))
        self._taken.clear()
