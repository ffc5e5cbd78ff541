"""How pictures are read on the event loop: in parts of a fraction of a millisecond, and no more of
them for one command than that.

A guest chooses how many rows, extents and bytes a picture has, and so how long reading it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import Final, Protocol

from vgpud.gpu.rects import halves
from vgpud.gpu.wire.header import Rect

STEP: Final = 650_000
"""Nanoseconds that reading one part costs, as reckoned: a frame of 1280 x 800, which takes half a
millisecond in fact. Scattered memory may take twice as long as reckoned."""

COMMAND: Final = 0.0005
"""Seconds after which a command that reads several pictures reads no more of them at once."""


class Budget:
    """What one command may read before it has to wait."""

    __slots__ = ("_left", "_until")

    def __init__(self) -> None:
        self._left = STEP
        self._until = perf_counter() + COMMAND

    @property
    def spent(self) -> bool:
        """Whether nothing more may be read."""
        return self._left <= 0 or perf_counter() >= self._until

    def spend(self, cost: int) -> bool:
        """Take what is to be read, in nanoseconds, out of the budget; return False, and take
        nothing, where too little is left."""
        if cost > self._left:
            return False
        self._left -= cost
        return True


class PictureSource(Protocol):
    """What pictures are read from: `gpu.pictures`."""

    def cost(self, scanout_id: int, rect: Rect) -> int | None:
        """Return about how many nanoseconds it takes to read a rectangle of a scanout; None if
        that has to be prepared first."""

    async def prepare(self, scanout_id: int) -> None:
        """Wait until a scanout can be read, or turns out to have nothing to read."""


class Parts:
    """The parts of some rectangles of a scanout, which are read one after the other and cost `step`
    nanoseconds at most.

    Where there is room, they end between tiles of this width and height.
    """

    def __init__(
        self,
        source: PictureSource,
        scanout_id: int,
        rects: Iterable[Rect],
        step: int,
        tile: tuple[int, int] = (1, 1),
    ) -> None:
        self._source = source
        self._scanout_id = scanout_id
        self._left = [*rects][::-1]
        self._step = step
        self._tile = tile
        self._begun = False

    async def next(self) -> Rect | None:
        """Let others run if a part has been read, and return the next one, which is to be read at
        once; None if there is none."""
        if self._begun:
            await asyncio.sleep(0)
        self._begun = True
        if not self._left:
            return None
        await self._source.prepare(self._scanout_id)
        part = self._left.pop()
        # Halved until it is cheap enough, because rows and extents may be anywhere in it.
        while (self._source.cost(self._scanout_id, part) or 0) > self._step:
            found = halves(part, self._tile)
            if found is None:
                break
            part, rest = found
            self._left.append(rest)
        return part
