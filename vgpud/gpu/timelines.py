"""Timelines: the order in which fenced commands are answered, on whichever thread they complete.

There is a timeline for each (context, ring index), and one for all commands without a ring index. A
command is answered when it is complete and every command before it on its timeline is. Source:
virtio 1.3, 5.7.6.7, VIRTIO_GPU_FLAG_FENCE and VIRTIO_GPU_FLAG_INFO_RING_IDX.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from time import perf_counter
from typing import Final

from vgpud.errors import VgpudError, stored
from vgpud.gpu.work import Done, Timeline

ANSWERING: Final = 0.0005
"""Seconds of answers after which others have their turn: a whole ring can wait for one command."""


class _Entry:
    """A command that has not been answered. Calling it completes the command, on any thread."""

    __slots__ = ("_timelines", "answer", "complete", "error", "timeline")

    def __init__(self, timelines: Timelines, timeline: Timeline, answer: Done) -> None:
        self._timelines = timelines
        self.timeline = timeline
        self.answer = answer
        self.complete = False
        self.error: VgpudError | None = None

    def __call__(self, error: VgpudError | None) -> None:
        self._timelines.complete(self, error)


class Timelines:
    """All timelines of one device.

    Everything is called on the event loop's thread, except the `Done` that `run` passes to `start`,
    which may be called on any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._lines: dict[Timeline, deque[_Entry]] = {}
        self._held = False
        self._emptied = asyncio.Event()
        self._ready: deque[Timeline] = deque()  # with answers that are left for the next turn
        self._next_turn: asyncio.Handle | None = None
        self._after_batch: list[Callable[[], None]] = []
        self.batching = False
        """Whether this is one of many answers; what `after_batch` was given is called after
        them."""

    def after_batch(self, call: Callable[[], None]) -> None:
        """Have a function called after each batch of answers."""
        self._after_batch.append(call)

    @property
    def empty(self) -> bool:
        """Whether no command on any timeline is unanswered."""
        return not self._lines

    def run(self, timeline: Timeline, start: Callable[[Done], None], answer: Done) -> None:
        """Start a command, and answer it when it is complete and all before it have been answered.

        `start` gets a function to call when the command is complete, with an error or None: on any
        thread, even before `start` returns; only the first call has an effect. A `VgpudError` that
        `start` raises completes the command, too. `answer` is called on the event loop.
        """
        entry = _Entry(self, timeline, answer)
        line = self._lines.get(timeline)
        if line is not None:
            line.append(entry)
        try:
            start(entry)
        except VgpudError as error:
            entry(error)
        if line is None:
            # Most commands are complete by now, and need not wait.
            if entry.complete and not self._held:
                answer(entry.error)
            else:
                self._lines[timeline] = deque((entry,))

    def after(self, timeline: Timeline, answer: Done) -> None:
        """Call `answer` when all commands now on the timeline have been answered; at once if there
        are none."""
        line = self._lines.get(timeline)
        if line is None:
            answer(None)
            return
        entry = _Entry(self, timeline, answer)
        entry.complete = True
        line.append(entry)

    async def drained(self) -> None:
        """Wait until all commands have been answered."""
        while self._lines:
            self._emptied.clear()
            await self._emptied.wait()

    def hold(self) -> None:
        """Hold all answers until `resume`; commands can still complete."""
        self._held = True

    def resume(self) -> None:
        """Give the answers that were held, and hold no more."""
        self._held = False
        self._ready.extend(self._lines)
        self._answer_ready()

    def drop(self) -> None:
        """Drop all commands without an answer, because the driver has been reset."""
        for line in self._lines.values():
            for entry in line:
                entry.complete = True
        self._lines.clear()
        self._ready.clear()
        self._held = False
        self._emptied.set()

    def complete(self, entry: _Entry, error: VgpudError | None) -> None:
        """Complete a command, on any thread."""
        if get_ident() != self._thread:
            # The loop may have ended: then there is no guest to answer.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.complete, entry, error)
        elif not entry.complete:
            entry.complete = True
            entry.error = None if error is None else stored(error)  # it may wait for long
            if not self._held:
                self._answer(entry.timeline)

    def _answer(self, timeline: Timeline) -> None:
        """Answer the complete commands at the head of a timeline, before long."""
        self._ready.append(timeline)
        if self._next_turn is None:
            self._answer_ready()

    def _answer_ready(self) -> None:
        """Answer what is complete for a short time, and the rest in the loop's next turn."""
        self._next_turn = None
        until = perf_counter() + ANSWERING
        ready = self._ready
        while ready and not self._held:
            timeline = ready.popleft()
            if not self._answer_line(timeline, until):
                ready.appendleft(timeline)
                self._next_turn = self._loop.call_soon(self._answer_ready)
                break
        if self._held:
            ready.clear()  # `resume` looks at all of them
        self._end_batch()
        if not self._lines:
            self._emptied.set()

    def _answer_line(self, timeline: Timeline, until: float) -> bool:
        """Answer the complete commands at the head of a timeline; return False if time is up
        before."""
        line = self._lines.get(timeline)
        while line and line[0].complete:
            entry = line.popleft()
            if not line:
                del self._lines[timeline]
            elif line[0].complete:
                self.batching = True
            entry.answer(entry.error)
            if perf_counter() >= until:
                return not (line and line[0].complete)
        return True

    def _end_batch(self) -> None:
        if self.batching:
            self.batching = False
            for call in self._after_batch:
                call()
