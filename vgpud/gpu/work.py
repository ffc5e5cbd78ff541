"""Long work: an answer that has to be waited for, work in steps, and what executes it.

The threads and their order are `gpu.executor`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from vgpud.errors import VgpudError
from vgpud.gpu.quota import Charge
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.wire.responses import Response

Answer: TypeAlias = Response | Coroutine[Any, Any, Response]
"""A response, or a coroutine that returns it. No other command of its queue is executed until the
coroutine has ended, and the command can be executed again if the coroutine is cancelled."""

Done: TypeAlias = Callable[[VgpudError | None], None]
"""Called when something is done, with the error that ended it, or None."""

Start: TypeAlias = Callable[[Done], None]
"""Starts a submission; `Done` is called once, on any thread, when it is complete. Raises
`VgpudError` where it can't be started; `Done` is not called then."""

Timeline: TypeAlias = tuple[ContextId, int] | None
"""A (context, ring index), or None for the device's own timeline."""


INLINE_COST = 100_000
"""Nanoseconds up to which work is done on the event loop if its timeline is idle: a switch to a
thread and back takes about as long. Where memory is slow, it takes a few times as long."""


@dataclass(slots=True)
class Traffic:
    """Bytes that steps have moved: `read` and `written` past the caches, `snooped` through them."""

    read: int = 0
    written: int = 0
    snooped: int = 0


@dataclass(slots=True, eq=False)
class Work:
    """`steps`, to be run one after the other on any thread, but not at the same time.

    Each takes a fraction of a millisecond: between two of them work can be paused and resumed.
    Every range was checked when the work was made, and the buffers in it stay mapped for as long as
    it exists. `resources` are those that the steps touch; `cost` is about how many nanoseconds they
    take (`memory.steps`).
    `refusal` is the error that the command is answered with after all steps have run, where the
    packet after them was bad. `charge` is to be released when the work is done or dropped.
    """

    steps: Iterator[None]
    resources: frozenset[ResourceId]
    cost: int
    refusal: VgpudError | None = None
    charge: Charge | None = None


class BackgroundWork(Protocol):
    """The executor for the parts of a device that wait for its work, or copy in a thread."""

    @property
    def submitted(self) -> int:
        """How much work has been submitted so far."""

    def busy(self, resource: ResourceId) -> bool:
        """Return whether submitted work that touches the resource is not done yet."""

    async def drained(self, resource: ResourceId) -> None:
        """Wait until all work submitted so far that touches the resource is done."""

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        """Run a long copy in a thread, and wait for it.

        A caller that is cancelled waits for the step that is running, and the others are left out.
        """

    async def run_steps(self, steps: Iterator[None], cost: int) -> None:
        """Run a copy of about `cost` nanoseconds where it suits others best, and wait for it as for
        `run_in_thread`."""

    def free_soon(self, steps: Iterator[None]) -> None:
        """Have steps run that free pages of a file which others have, and wait for nothing.

        They run in order, always to the end, in a thread that does nothing else: see
        `memory.page_freer`.
        """

    async def free_pages(self, steps: Iterator[None], *, give_up: bool = False) -> None:
        """Run such steps, and wait for their end; raise their HostError.

        A caller that is cancelled returns at once, and the steps go on. With `give_up` that is also
        so if the thread hangs: raises `PeerError`.
        """

    async def pages_freed(self) -> None:
        """Wait until all such steps that were passed so far have ended."""


class WorkExecutor(BackgroundWork, Protocol):
    """The executor for a renderer, which submits work to it."""

    def submit(self, key: Timeline, work: Work, done: Done) -> None:
        """Queue work; `done` is called on the event loop when it and all work before it on its
        timeline are done."""

    async def pause(self) -> None:
        """Stop between two steps, and wait for copies that have begun: no submitted work touches
        any buffer after this, until `resume`. A copy whose caller was cancelled before ends with
        its step."""

    def resume(self) -> None:
        """Continue where `pause` stopped."""

    def drop(self) -> None:
        """Drop all work that is not done; `pause` comes first. Its `done` is never called."""
