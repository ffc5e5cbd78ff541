"""Cursors: the two commands of the cursor queue. Source: virtio 1.3, 5.7.6.10 "cursorq"
UPDATE_CURSOR and MOVE_CURSOR.

The specification says nothing about the resource of a MOVE_CURSOR. QEMU's device and its vhost-user
back-end hide the cursor for resource 0, and show it for any other, which need not be that of the
image: hw/display/virtio-gpu.c, contrib/vhost-user-gpu/vhost-user-gpu.c. Drivers rely on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.display.display import Display
from vgpud.gpu.resources import BYTES_PER_PIXEL, Image, Resource, ResourceTable
from vgpud.gpu.state import CursorState
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.formats import to_xrgb
from vgpud.gpu.wire.protocol import Format
from vgpud.gpu.work import INLINE_COST, Answer, BackgroundWork
from vgpud.memory.steps import Place, Steps, cost, parts

CURSOR_SIZE = 64
"""Pixels in both directions: the one size that virtio-gpu has."""


@dataclass(frozen=True, slots=True, eq=False)
class Cursor:
    """A scanout's cursor: its position, and its last image as (64, 64, 4) of B, G, R, A, if it ever
    had one. It is shown if it is `enabled` and has an image."""

    x: int
    y: int
    hot_x: int
    hot_y: int
    image: NDArray[np.uint8] | None
    enabled: bool

    @property
    def visible(self) -> bool:
        """Whether it is shown."""
        return self.enabled and self.image is not None


_NONE = Cursor(0, 0, 0, 0, None, enabled=False)


class Cursors:
    """The cursors of one device; `check` raises `InvalidScanoutId` for a bad scanout."""

    def __init__(
        self, resources: ResourceTable, check: Callable[[int], None], executor: BackgroundWork
    ) -> None:
        self._resources = resources
        self._check = check
        self._executor = executor
        self._cursors: dict[int, Cursor] = {}
        self._display: Display | None = None

    def attach(self, display: Display | None) -> None:
        """Show the cursors on another display, as they are."""
        self._display = display
        for scanout_id, cursor in self._cursors.items():
            self._show(scanout_id, cursor)

    def update(self, command: commands.UpdateCursor) -> Answer:
        """Execute UPDATE_CURSOR; resource 0 hides the cursor, which keeps its image."""
        self._check(command.scanout_id)
        if command.resource_id == 0:
            before = self._cursors.get(command.scanout_id, _NONE)
            return self._set(command, before.image, enabled=False)
        reading = _Reading(self._resources.get(command.resource_id))
        if reading.cost > INLINE_COST:
            return self._update_in_steps(command, reading)
        for _ in reading.steps():
            pass
        return self._set(command, reading.image, enabled=True)

    async def _update_in_steps(
        self, command: commands.UpdateCursor, reading: _Reading
    ) -> responses.Response:
        await self._executor.run_steps(reading.steps(), reading.cost)
        return self._set(command, reading.image, enabled=True)

    def _set(
        self, command: commands.UpdateCursor, image: NDArray[np.uint8] | None, *, enabled: bool
    ) -> responses.Response:
        cursor = Cursor(command.x, command.y, command.hot_x, command.hot_y, image, enabled=enabled)
        self._cursors[command.scanout_id] = cursor
        self._show(command.scanout_id, cursor)
        return responses.OkNoData()

    def move(self, command: commands.MoveCursor) -> responses.Response:
        """Execute MOVE_CURSOR; resource 0 hides the cursor, any other shows it."""
        self._check(command.scanout_id)
        before = self._cursors.get(command.scanout_id, _NONE)
        enabled = command.resource_id != 0
        cursor = replace(before, x=command.x, y=command.y, enabled=enabled)
        self._cursors[command.scanout_id] = cursor
        if cursor.visible and not before.visible:
            self._show(command.scanout_id, cursor)  # also a hot spot that was set meanwhile
        elif self._display is not None:
            self._display.cursor_move(
                command.scanout_id, cursor.x, cursor.y, visible=cursor.visible
            )
        return responses.OkNoData()

    def save(self) -> tuple[CursorState, ...]:
        """Return the cursors' states."""
        return tuple(
            CursorState(
                scanout_id,
                cursor.x,
                cursor.y,
                cursor.hot_x,
                cursor.hot_y,
                None if cursor.image is None else cursor.image.tobytes(),
                cursor.enabled,
            )
            for scanout_id, cursor in self._cursors.items()
        )

    def restore(self, state: CursorState) -> None:
        """Show a saved cursor."""
        image = None
        if state.image is not None:
            flat = np.frombuffer(state.image, np.uint8)
            image = flat.reshape(CURSOR_SIZE, CURSOR_SIZE, BYTES_PER_PIXEL)
        cursor = Cursor(state.x, state.y, state.hot_x, state.hot_y, image, enabled=state.enabled)
        self._cursors[state.scanout] = cursor
        self._show(state.scanout, cursor)

    def clear(self) -> None:
        """Hide and drop all cursors."""
        if self._display is not None:
            for scanout_id, cursor in self._cursors.items():
                self._display.cursor_move(scanout_id, cursor.x, cursor.y, visible=False)
        self._cursors.clear()

    def _show(self, scanout_id: int, cursor: Cursor) -> None:
        if self._display is None:
            return
        x, y = cursor.x, cursor.y
        if cursor.image is None or not cursor.visible:
            self._display.cursor_move(scanout_id, x, y, visible=False)
        else:
            self._display.cursor_update(scanout_id, x, y, cursor.hot_x, cursor.hot_y, cursor.image)


class _Reading:
    """The reading of a cursor's `image`: the upper left 64 x 64 pixels of an image, transparent
    where it has none; a blob is taken for 64 x 64 pixels of B, G, R, A. An X in the place of alpha
    is taken for alpha.

    Raises `VgpudError` where there are no such pixels.
    """

    def __init__(self, resource: Resource) -> None:
        width = height = CURSOR_SIZE
        stride, self._format = CURSOR_SIZE * BYTES_PER_PIXEL, Format.B8G8R8A8_UNORM
        if isinstance(resource, Image):
            width, height = min(resource.width, CURSOR_SIZE), min(resource.height, CURSOR_SIZE)
            stride, self._format = resource.stride, resource.format
        contents, self._shape = resource.contents(), (height, width * BYTES_PER_PIXEL)
        contents.check_rect(0, stride, width * BYTES_PER_PIXEL, height)
        self._place = Place(contents, 0, stride)
        self.cost = cost(width * BYTES_PER_PIXEL, height, self._place)
        self.image: NDArray[np.uint8] = np.zeros((CURSOR_SIZE, CURSOR_SIZE, 4), np.uint8)

    def steps(self) -> Steps:
        """Read it."""
        (height, row_bytes), (contents, _, stride) = self._shape, self._place
        pixels = np.empty(self._shape, np.uint8)
        for row, rows, column, width in parts(row_bytes, height, self._place):
            part = contents.read_rect(row * stride + column, stride, width, rows)
            pixels[row : row + rows, column : column + width] = part
            yield
        shown = to_xrgb(pixels.reshape(height, -1, BYTES_PER_PIXEL), self._format)
        self.image[:height, : row_bytes // BYTES_PER_PIXEL] = shown
