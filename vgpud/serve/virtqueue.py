"""One virtqueue of a session: from SET_VRING_* to a task that drains the ring whenever the driver
kicks.

Owns the ring's descriptors (kick, call, err) and its task. What is in a chain is the handler's
business. Source: the vhost-user specification, "Starting and stopping rings", and virtio 1.3, 2.7.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from vgpud.errors import GuestAddressError, PeerError, RingError
from vgpud.host import eventfd
from vgpud.host.fds import Fd
from vgpud.host.guest_memory import GuestMemory
from vgpud.host.vring import RingAddress, ring_views
from vgpud.serve.rate_limit import RateLimit
from vgpud.wire.ring import Chain, RingViews, SplitRing

log = logging.getLogger(__name__)

Handler = Callable[[Chain, bytes], Coroutine[Any, Any, None] | None]
"""Called with a chain and its readable bytes. It answers now or later by `VirtQueue.complete`; a
coroutine that it returns is waited for before the next chain is taken, and is cancelled when the
ring stops."""

REQUEST_LIMIT = 8 << 20
"""Bytes of one request. The largest a driver makes is a list of backing pages: 8 MiB list 2 GiB of
them singly."""

QUANTUM = 0.002
"""Seconds after which other tasks, and so other devices, get their turn."""

POLL_INTERVAL = 0.001
"""Seconds between looks at a ring whose front-end gave no kick descriptor
(VHOST_USER_VRING_NOFD_MASK)."""


@dataclass(slots=True)
class RingSetup:
    """What the front-end has said of a ring so far."""

    num: int = 0
    address: RingAddress | None = None
    base: int = 0
    fresh: bool = False
    enabled: bool = False
    kick: Fd | None = None
    polled: bool = False
    call: Fd | None = None
    err: Fd | None = None
    finished: list[tuple[Chain, bytes]] = field(default_factory=list)


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
    ) -> None:
        self.setup = RingSetup()
        self._device = device
        self._name = name
        self._memory = memory
        self._handler = handler
        self._tasks = tasks
        self._features = self._num = 0  # of the ring that runs, whatever is said meanwhile
        self._ring: SplitRing | None = None
        self._task: asyncio.Task[None] | None = None
        self._kicked = asyncio.Event()
        self._complaints = RateLimit()
        self._draining = False
        self._failure: PeerError | None = None  # found where nobody could catch it
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
        if self._ring is not None or not self.ready:
            return
        self._features, self._num = features, setup.num
        try:
            self._ring = self._open(setup.base)
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
            self._ring.move(self._views())
        except (RingError, GuestAddressError) as error:
            self._break(error)

    def complete(self, chain: Chain, response: bytes) -> None:
        """Writes a response into its chain, as much as there is room for, and hands the chain back
        to the driver."""
        ring = self._ring
        if ring is None:
            self.setup.finished.append((chain, response))
            return
        written = 0
        try:
            for addr, length in chain.writable:
                part = response[written : written + length]
                if part:
                    self._memory.write(addr, part)
                    written += len(part)
        except GuestAddressError as error:
            self._break(error)
            return
        ring.push(chain.head, written)
        if not self._draining:  # else once for all that is answered in one go
            self._notify()

    def _notify(self) -> None:
        """Interrupts the driver, if it wants that for what was completed since."""
        if self._ring is not None and self._ring.should_notify() and self.setup.call is not None:
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
            self._ring.log_used = self._log_used()
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
            self.setup.base = self._ring.next_avail
        self._ring = self._task = None
        if self.setup.kick is not None:
            self._loop.remove_reader(self.setup.kick.fileno())

    def _open(self, base: int) -> SplitRing:
        return SplitRing(
            self._views(),
            self._memory,
            base=base,
            features=self._features,
            log_used=self._log_used(),
        )

    def _views(self) -> RingViews:
        assert self.setup.address is not None
        return ring_views(self._memory, self.setup.address, self._num)

    def _log_used(self) -> Callable[[int, int], None] | None:
        address = self.setup.address
        if address is None or address.log is None:
            return None
        log_address = address.log
        return lambda offset, length: self._memory.mark_dirty(log_address + offset, length)

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

    async def _run(self, ring: SplitRing) -> None:
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
        if self.setup.polled:
            await asyncio.sleep(POLL_INTERVAL)
        else:
            await self._kicked.wait()
        self._kicked.clear()
        if self._failure is not None:
            raise self._failure

    async def _drain(self, ring: SplitRing) -> None:
        ring.disable_kicks()
        until = perf_counter() + QUANTUM
        while self._ring is ring:
            waiting, empty = self._take(ring, until)
            if waiting is not None and self._memory.faulted:
                waiting.close()
            self._check_memory()
            if waiting is not None:
                try:
                    await waiting
                except asyncio.CancelledError:
                    ring.put_back()  # not answered: whoever starts the ring again takes it up anew
                    raise
            elif empty:
                if not ring.enable_kicks():
                    return
                ring.disable_kicks()
            if perf_counter() >= until:
                await asyncio.sleep(0)
                until = perf_counter() + QUANTUM

    def _take(self, ring: SplitRing, until: float) -> tuple[Coroutine[Any, Any, None] | None, bool]:
        """Handles chains until one is to be waited for, time is up, or (True) none is left."""
        self._draining = True
        try:
            while True:
                chain = ring.pop()
                if chain is None:
                    return None, True
                waiting = self._handler(chain, self._gather(chain))
                if waiting is not None or self._ring is not ring or perf_counter() >= until:
                    return waiting, False
        finally:
            self._draining = False
            self._notify()

    def _gather(self, chain: Chain) -> bytes:
        if sum(length for _, length in chain.readable) > REQUEST_LIMIT:
            raise RingError(f"a request of more than {REQUEST_LIMIT} bytes")
        if len(chain.readable) == 1:
            return self._memory.read(*chain.readable[0])
        return b"".join(self._memory.read(addr, length) for addr, length in chain.readable)
