"""A screenshot in the making: a copy of a scanout's pixels, taken whole.

A guest that draws flushes soon, and what it flushes is a whole frame: then its flush waits until
the copy has been made. If none comes, the copy is of what the scanout has shown all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory
from vgpud.gpu.display.frame import BYTES_PER_PIXEL
from vgpud.gpu.display.reading import STEP, Parts, PictureSource
from vgpud.gpu.wire.formats import to_rgb
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import Format
from vgpud.memory.pages import zeroed
from vgpud.memory.steps import Steps

RunInThread: TypeAlias = Callable[[Steps], Awaitable[None]]
"""What runs steps in a thread. Once it is cancelled, it runs no more of them."""

_FILL_STEP: Final = 4 << 20  # bytes of pages that a thread makes at a time

_BYTES_IN_FILE: Final = 3  # a pixel's, if the picture can't be compressed

ROWS_BYTES: Final = 256 << 10
"""Bytes of the rows that are converted at a time."""

SETTLE: Final = 0.1
"""Seconds to wait for a flush. One of a guest that draws ten frames a second comes in that time."""

TRIES: Final = 3
"""Copies that are made of a scanout which shows something else before they are complete."""


class Capture:
    """A copy of `width` x `height` pixels of a format.

    Raises `OutOfMemory` if it takes more than `limit` bytes, with the file that is made of it.
    """

    def __init__(self, size: tuple[int, int], pixel_format: Format, limit: int) -> None:
        self.size = self.width, self.height = size
        self.format = pixel_format
        needed = self.width * self.height * (BYTES_PER_PIXEL + _BYTES_IN_FILE)
        what = f"a screenshot of {self.width}x{self.height}"
        if needed > limit:
            raise OutOfMemory(f"{what} takes {needed} bytes, and memory_limit is {limit}")
        try:
            pixels = zeroed(self.width * self.height * BYTES_PER_PIXEL)
        except OutOfMemory:
            raise OutOfMemory(f"the host has no {needed} bytes for {what}") from None
        self.pixels: NDArray[np.uint8] = pixels.reshape(self.height, self.width, BYTES_PER_PIXEL)
        self.flushed = asyncio.Event()  # the guest has flushed, and makes the copy
        self.ended = asyncio.Event()  # that copy has been made, or given up
        self.whole = False
        self.disturbed = False  # the scanout shows something else

    def make_pages(self) -> Steps:
        """Have the kernel make the pages of `pixels`, which takes longer than to copy to them."""
        flat = self.pixels.reshape(-1)
        for start in range(0, len(flat), _FILL_STEP):
            flat[start : start + _FILL_STEP] = 0
            yield

    def put(self, rect: Rect, pixels: NDArray[np.uint8]) -> None:
        """Set a rectangle: (height, width, 4) in the capture's format."""
        self.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] = pixels

    def rows(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the picture from the top, some rows at a time: (rows, width, 3) of R, G, B."""
        step = max(ROWS_BYTES // (self.width * BYTES_PER_PIXEL), 1)
        for row in range(0, self.height, step):
            yield to_rgb(self.pixels[row : row + step], self.format)

    def release(self) -> None:
        """Free the pixels; a second call does nothing."""
        self.pixels = self.pixels[:0].copy()


class CaptureSource(PictureSource, Protocol):
    """What screenshots are taken of: `gpu.pictures`."""

    def appearance(self, scanout_id: int) -> tuple[tuple[int, int], Format] | None:
        """Return the size in pixels and the format of what a scanout shows; None if it is off."""

    def pixels(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        """Return a rectangle in the scanout's format; None if there is nothing to read."""


class Captures:
    """The captures of one device that are being made."""

    def __init__(self, source: CaptureSource) -> None:
        self._source = source
        self._running: dict[int, list[Capture]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def settle(self, scanout_id: int) -> bool:
        """Return whether a flush has nothing to do; if not, `finish_settling` has to be awaited."""
        return scanout_id not in self._running

    async def finish_settling(self, scanout_id: int) -> None:
        """Copy a frame that was flushed for all captures of its scanout."""
        for capture in [*self._running.get(scanout_id, ())]:
            capture.flushed.set()
            try:
                capture.whole = await self._copy(scanout_id, capture)
            finally:
                capture.ended.set()

    def disturb(self, scanout_id: int) -> None:
        """Note that a scanout shows something else from now on."""
        for capture in self._running.get(scanout_id, ()):
            capture.disturbed = True

    async def take(
        self, scanout_id: int, limit: int, run_in_thread: RunInThread | None = None
    ) -> Capture | None:
        """Return a screenshot, which the caller has to release; None if a scanout shows nothing,
        or something else all the time.

        Its memory is made by `run_in_thread`, or else while the pixels are copied. Raises
        `OutOfMemory` if it takes more than `limit` bytes.
        """
        for _ in range(TRIES):
            found = self._source.appearance(scanout_id)
            if found is None:
                return None
            capture, done = Capture(*found, limit), False
            try:
                if run_in_thread is not None:
                    await run_in_thread(capture.make_pages())
                with self._begun(scanout_id, capture):
                    done = await self._make(scanout_id, capture)
            finally:
                if not done:
                    capture.release()
            if done:
                return capture
        return None

    @contextmanager
    def _begun(self, scanout_id: int, capture: Capture) -> Iterator[None]:
        """Have what the guest flushes copied for a capture."""
        running = self._running.setdefault(scanout_id, [])
        running.append(capture)
        try:
            yield
        finally:
            running.remove(capture)
            if not running:
                self._running.pop(scanout_id, None)

    async def _make(self, scanout_id: int, capture: Capture) -> bool:
        copied = await self._copy(scanout_id, capture, until=capture.flushed)
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                await capture.flushed.wait()
        if not capture.flushed.is_set():
            return copied and not capture.disturbed
        await capture.ended.wait()
        return capture.whole

    async def _copy(
        self, scanout_id: int, capture: Capture, until: asyncio.Event | None = None
    ) -> bool:
        """Copy the pixels in steps; return whether all of them were there, and of the capture's
        size and format. Ends early once `until` is set."""
        parts = Parts(self._source, scanout_id, [Rect(0, 0, *capture.size)], STEP)
        while (part := await parts.next()) is not None:
            if until is not None and until.is_set():
                return False
            if self._source.appearance(scanout_id) != (capture.size, capture.format):
                return False
            found = self._source.pixels(scanout_id, part)
            if found is None:
                return False
            capture.put(part, found)
        return True
