"""What the device needs of a VMM's display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.display.reading import Budget
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.responses import DisplayMode


class Display(Protocol):
    """A display that shows the device's scanouts. Only `modes` and `edid` wait for the VMM's
    answer."""

    def scanout(self, scanout_id: int, width: int, height: int) -> None:
        """Set a scanout's size in pixels; 0 x 0 turns it off."""

    def damage(self, scanout_id: int, rect: Rect) -> None:
        """Note that a rectangle of a scanout, in its own coordinates, is to be read again."""

    @property
    def unsettled(self) -> bool:
        """Whether anything that was noted has not been taken yet."""

    def taking(self, scanout_id: int) -> bool:
        """Return whether a scanout's pixels are being taken at the moment."""

    def settle(self, scanout_id: int, budget: Budget) -> bool:
        """Take all that was noted of a scanout, because its pixels may change next, if the
        command's budget suffices.

        Returns whether that is done; if not, the guest has to wait for `finish_settling`.
        """

    async def finish_settling(self, scanout_id: int) -> None:
        """Take what could not be taken at once; if cancelled, it remains noted."""

    def cursor_update(
        self, scanout_id: int, x: int, y: int, hot_x: int, hot_y: int, image: NDArray[np.uint8]
    ) -> None:
        """Show another cursor: `image` is (64, 64, 4) of uint8, premultiplied B, G, R, A."""

    def cursor_move(self, scanout_id: int, x: int, y: int, *, visible: bool) -> None:
        """Move, show or hide the cursor."""

    async def modes(self) -> Sequence[DisplayMode]:
        """Return the modes of the sixteen outputs as the VMM wants them.

        Raises `Unspecified` if the VMM does not answer.
        """

    async def edid(self, scanout_id: int) -> bytes:
        """Return the VMM's own EDID for a scanout.

        Raises `Unspecified` if the VMM has none or does not answer.
        """
