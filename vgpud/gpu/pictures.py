"""Pictures: what scanouts show, read for displays and screenshots.

A scanout is a view of a resource, which may be a long list of guest pages; that has to be resolved
again after each change of the memory table, which is not done while the event loop waits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import VgpudError
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.quota import Quota
from vgpud.gpu.rects import intersect
from vgpud.gpu.resources import Backing, GuestBlob
from vgpud.gpu.scanout import Scanout
from vgpud.gpu.wire.formats import to_xrgb, xrgb_order
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import Format, ScanoutId
from vgpud.gpu.work import BackgroundWork


class Pictures:
    """What the scanouts of one device show, as a `display.scanout_frames.ScanoutReader` and a
    `display.capture.CaptureSource`; `active` are those that are on."""

    def __init__(
        self, active: Mapping[ScanoutId, Scanout], quota: Quota, executor: BackgroundWork
    ) -> None:
        self._active = active
        self._quota = quota
        self._executor = executor

    def appearance(self, scanout_id: int) -> tuple[tuple[int, int], Format] | None:
        """Return the size in pixels and the format of what a scanout shows; None if it is off."""
        scanout = self._active.get(ScanoutId(scanout_id))
        return None if scanout is None else (scanout.size, scanout.view.format)

    async def prepare(self, scanout_id: int) -> None:
        """Have a scanout's long list of pages resolved in a thread; where there is no memory for
        that, it has nothing to read."""
        while (pages := self._unresolved(scanout_id)) is not None:
            try:
                await pages.resolve(self._quota, self._executor)
            except VgpudError as error:
                self._quota.note_refusal(f"output {scanout_id} can't be read: {error}")
                return

    def cost(self, scanout_id: int, rect: Rect) -> int | None:
        """Return about how many nanoseconds it takes to read a part of a scanout: 0 if there is
        nothing to read, None if that has to be prepared first."""
        if self._unresolved(scanout_id) is not None:
            return None
        scanout = self._showing(scanout_id, rect)
        try:
            return 0 if scanout is None else scanout.cost(rect)
        except VgpudError:
            return 0

    def pixels(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        """Return a part of a scanout as (height, width, 4) of bytes in its format.

        None if the scanout is off or smaller, or its pages are gone or not prepared.
        """
        scanout = self._showing(scanout_id, rect)
        if scanout is None or self._unresolved(scanout_id) is not None:
            return None
        try:
            return scanout.pixels(rect)
        except VgpudError:  # its pages are gone, or no longer guest memory
            return None

    def xrgb(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        """Return a part of a scanout as (height, width, 4) of B, G, R, X, or None as `pixels`."""
        pixels = self.pixels(scanout_id, rect)
        if pixels is None:
            return None
        return to_xrgb(pixels, self._active[ScanoutId(scanout_id)].view.format)

    def update(self, scanout_id: int, rect: Rect, shadow: Shadow) -> NDArray[np.uint8] | None:
        """Bring a part of a shadow up to date; return its changed tiles, as `Shadow.take` does.

        None if the scanout is off or not of the shadow's size, or its pages are gone or not
        prepared.
        """
        scanout = self._showing(scanout_id, rect)
        if scanout is None or scanout.size != (shadow.width, shadow.height):
            return None
        if self._unresolved(scanout_id) is not None:
            return None
        try:
            contents = scanout.resource.contents()
            order = xrgb_order(scanout.view.format)
            return shadow.take(rect, contents, scanout.offset_of(rect), scanout.view.stride, order)
        except VgpudError:
            return None

    def _unresolved(self, scanout_id: int) -> Backing | None:
        """Return the list of pages of a scanout that has to be resolved first, if there is one."""
        scanout = self._active.get(ScanoutId(scanout_id))
        if scanout is None or not isinstance(scanout.resource, GuestBlob):
            return None
        pages = scanout.resource.backing
        return pages if pages is not None and pages.stale else None

    def _showing(self, scanout_id: int, rect: Rect) -> Scanout | None:
        """Return the scanout if it contains a rectangle, else None."""
        scanout = self._active.get(ScanoutId(scanout_id))
        if scanout is None or intersect(rect, scanout.whole) != rect:
            return None
        return scanout
