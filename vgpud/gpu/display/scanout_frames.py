"""The frames of one scanout on their way to a display: each taken whole, and sent whole.

What is flushed is unread until it is taken: compared with the shadow, a copy of the newest frame,
to which that is copied which differs. A frame is taken when the display is ready for it, or, if
that is earlier, before its pixels can change; the guest waits meanwhile. Sent are the tiles that
differ, from the shadow; if that has to take another frame in the middle, what has not been sent is
copied first. So the guest does not wait for the display, and the display gets the newest frame.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory
from vgpud.gpu.display.damage import Damage, union
from vgpud.gpu.display.frame import Frame
from vgpud.gpu.display.reading import STEP, Budget, Parts, PictureSource
from vgpud.gpu.display.shadow import TILE, Shadow
from vgpud.gpu.display.tiles import rectangles
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.rects import cut
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId

PATIENCE: Final = 0.1
"""Seconds that a guest waits for the display where there is no memory to take its frame. After
that it continues, and the frame may be shown with parts of the next."""


class ScanoutReader(PictureSource, Protocol):
    """What pixels are read from: `gpu.pictures`."""

    def update(self, scanout_id: int, rect: Rect, shadow: Shadow) -> NDArray[np.uint8] | None:
        """Bring a rectangle of a shadow up to date; return its changed tiles, or None if there is
        nothing to read or the scanout has another size now."""

    def xrgb(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        """Return a rectangle as (height, width, 4) of B, G, R, X, or None if there is nothing to
        read."""


class ScanoutFrames:
    """The frames of one scanout, from one change of its size to the next.

    The memory is charged to `quota`. Where it does not suffice for a shadow, damage is to be sent
    as it is read, and a guest that has flushed waits for that.
    """

    def __init__(
        self, scanout_id: ScanoutId, size: tuple[int, int], reader: ScanoutReader, quota: Quota
    ) -> None:
        self.scanout_id = scanout_id
        self.unread = Damage()
        self._width, self._height = size
        self._reader = reader
        self._quota = quota
        self._shadow: Shadow | None = None
        self._charge = Charge(quota, 0)
        self._copy = Charge(quota, 0)  # of the frame that is being sent
        self._refused = False  # a shadow, for want of memory
        self._changed = np.zeros((-(-size[1] // TILE[1]), -(-size[0] // TILE[0])), np.uint8)
        self._bounds: Rect | None = None  # of what was taken and has changed
        self._whole = True  # what was taken is whole frames
        self._taking = asyncio.Lock()
        self._frame: Frame | None = None  # that is being sent
        self._sent = asyncio.Event()
        self._sent.set()
        self._late = False  # the display has kept the guest waiting since the last `end`
        self._closed = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to be sent, or to be taken for that."""
        return bool(self.unread) or self._ready

    @property
    def _ready(self) -> bool:
        """Whether a whole frame has been taken that differs from the one sent before."""
        return self._whole and self._bounds is not None

    @property
    def unsettled(self) -> bool:
        """Whether something noted is unread, or being taken at the moment."""
        return bool(self.unread) or self.taking

    @property
    def taking(self) -> bool:
        """Whether a frame is being taken in steps at the moment."""
        return self._taking.locked()

    def settle(self, budget: Budget) -> bool:
        """Take all that is unread, if the budget suffices; return whether that is done: if it
        takes longer, `finish_settling` has to be awaited."""
        if not self.unsettled:
            return True
        if self.shadow is None:
            self._sent.clear()
            return False
        shared = self._frame is not None and not self._frame.detached
        if shared or self.taking or budget.spent:
            return False
        cost = self._cost()
        if cost is None or not budget.spend(cost):
            return False
        for part in self.unread.pop_all():
            self._read(part)
        self._whole = True
        return True

    async def finish_settling(self) -> None:
        """Take all that is unread in steps, or wait until it has been sent, for want of memory."""
        if self.shadow is None:
            await self._wait_until_sent()
            return
        if self._ready and self._frame is None:
            # Let it be sent if the display can take it: a guest may flush all the time.
            await asyncio.sleep(0)
        await self.take()

    async def take(self) -> None:
        """Take all that is unread, in steps. If cancelled, it is unread again, and what was taken
        of it is not sent before it has been taken whole."""
        async with self._taking:
            while self.unread and self._frame is not None and not self._frame.detached:
                await self._detach(self._frame)
            if self._closed or not self.unread:
                return
            self._whole = False
            rects = self.unread.pop_all()
            parts = Parts(self._reader, self.scanout_id, rects, STEP, TILE)
            try:
                while (part := await parts.next()) is not None:
                    self._read(part)
            except BaseException:
                for rect in rects:
                    self.unread.add(rect)
                raise
            self._whole = True

    def begin(self, most: int) -> Frame | None:
        """Return a frame to send, in messages of up to `most` pixels; None if nothing has changed,
        or the newest frame is not taken whole. `end` has to follow."""
        if self._shadow is None or self._bounds is None or not self._whole:
            return None
        area, self._bounds = self._bounds, None
        tiles = self._tiles(area)
        rects = rectangles(tiles, area, TILE)
        tiles[:] = 0
        parts = [part for rect in rects for part in cut(rect, most, TILE)]
        pixels = map(self._shadow.pixels, parts)
        self._frame = Frame(self.scanout_id, list(zip(parts, pixels, strict=True)))
        self._sent.clear()
        return self._frame

    def begin_unread(self, step: int) -> Parts:
        """Return a rectangle that is to be read and sent because there is no shadow, in parts that
        cost `step` nanoseconds at most. `end` has to follow."""
        self._sent.clear()
        return Parts(self._reader, self.scanout_id, [self.unread.pop()], step)

    def end(self) -> None:
        """Note that all of what was begun has been sent."""
        self._frame = None
        self._copy.release()
        self._late = False
        if self._shadow is not None or not self.unread:
            self._sent.set()
        if self._closed:
            self._free()

    def close(self) -> None:
        """Drop everything but the message that is being sent: the display expects all of it."""
        self._closed = True
        self.unread.pop_all()
        self._bounds = None
        if self._frame is not None:
            self._frame.drop_rest()
        else:
            self._free()
        self._sent.set()

    @property
    def closed(self) -> bool:
        """Whether the scanout has another size now, or is off."""
        return self._closed

    @property
    def shadow(self) -> Shadow | None:
        """The shadow, made when it is first needed; None while there is no memory for it."""
        size = Shadow.size(self._width, self._height)
        if self._shadow is not None or self._closed:
            return self._shadow
        if self._refused and size > self._quota.limit - self._quota.used:
            return None
        try:
            self._charge = self._quota.charge(size)
            self._shadow = Shadow(self._width, self._height)
        except OutOfMemory as error:
            self._charge.release()
            if not self._refused:
                self._quota.note_refusal(
                    f"no copy of the {self._width}x{self._height} picture on output"
                    f" {self.scanout_id}, which may therefore have parts of two frames: {error}"
                )
            self._refused = True
        else:
            if self._refused:  # what the display was sent meanwhile is not known
                self.unread.add(self._all)
        return self._shadow

    @property
    def _all(self) -> Rect:
        return Rect(0, 0, self._width, self._height)

    def _tiles(self, area: Rect) -> NDArray[np.uint8]:
        """Return the marks of the tiles that an area touches, as a view."""
        (width, height), right, bottom = TILE, area.x + area.width, area.y + area.height
        return self._changed[
            area.y // height : -(-bottom // height), area.x // width : -(-right // width)
        ]

    def _cost(self) -> int | None:
        """Return what it costs to take all that is unread; None if that has to be prepared."""
        total = 0
        for rect in self.unread:
            cost = self._reader.cost(self.scanout_id, rect)
            if cost is None:
                return None
            total += cost
        return total

    def _read(self, rect: Rect) -> None:
        """Take a rectangle, unless its pages are gone."""
        if self._closed or self._shadow is None:
            return
        changed = self._reader.update(self.scanout_id, rect, self._shadow)
        if changed is not None and changed.any():
            self._tiles(rect)[:] |= changed
            self._bounds = rect if self._bounds is None else union(self._bounds, rect)

    def _free(self) -> None:
        """Free the shadow, which nothing is being sent from."""
        self._charge.release()
        self._shadow = None

    async def _detach(self, frame: Frame) -> None:
        """Detach the frame that is being sent from the shadow, or wait until it has been sent."""
        try:
            self._copy.grow(frame.pixel_bytes)
        except OutOfMemory as error:
            self._quota.note_refusal(
                f"no second copy of the {self._width}x{self._height} picture on output"
                f" {self.scanout_id}, whose guest waits for the VMM's display: {error}"
            )
            await self._wait_until_sent()
            if self._frame is frame:  # it takes too long: the rest of it may get newer pixels
                frame.detached = True
            return
        for _ in frame.detach():
            await asyncio.sleep(0)
        if self._frame is not frame:
            self._copy.release()

    async def _wait_until_sent(self) -> None:
        """Wait until the display has been sent everything, unless it has kept a guest waiting
        already."""
        if self._late:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._sent.wait()
        except TimeoutError:
            self._late = True
