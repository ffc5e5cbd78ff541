"""Scanouts: what each output shows, and the commands on outputs.

A scanout has no pixels of its own: it is a view of a resource, which is read for a display or a
screenshot. Source: virtio 1.3, 5.7.6.8 GET_DISPLAY_INFO, GET_EDID, SET_SCANOUT, SET_SCANOUT_BLOB
and RESOURCE_FLUSH.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from vgpud.gpu.display.capture import Captures
from vgpud.gpu.display.display import Display
from vgpud.gpu.display.reading import Budget
from vgpud.gpu.errors import InvalidParameter, InvalidScanoutId
from vgpud.gpu.images import check_format
from vgpud.gpu.pictures import Pictures
from vgpud.gpu.quota import Quota
from vgpud.gpu.rects import check_rect, intersect, is_empty
from vgpud.gpu.resources import BYTES_PER_PIXEL, Image, ResourceTable
from vgpud.gpu.scanout import Scanout, check_side
from vgpud.gpu.spec import PreferredMode
from vgpud.gpu.state import ScanoutState
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.edid import edid
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import MAX_SCANOUTS, ContextId, ResourceId, ScanoutId
from vgpud.gpu.work import Answer, BackgroundWork

OK = responses.OkNoData()

Waiting: TypeAlias = tuple[Display | Captures, ScanoutId]
"""A frame that has to be taken: what it is for, and of which scanout."""


class Scanouts:
    """The outputs of one device and the commands on them."""

    def __init__(
        self,
        name: str,
        outputs: tuple[PreferredMode, ...],
        resources: ResourceTable,
        is_attached: Callable[[ResourceId, ContextId], bool],
        quota: Quota,
        executor: BackgroundWork,
    ) -> None:
        self._name = name
        self._outputs = list(outputs)
        self._resources = resources
        self._is_attached = is_attached
        self._active: dict[ScanoutId, Scanout] = {}
        self._display: Display | None = None
        self.pictures = Pictures(self._active, quota, executor)
        self.captures = Captures(self.pictures)

    # For displays and the control API

    @property
    def outputs(self) -> tuple[PreferredMode, ...]:
        """The modes that the guest is offered while there is no display."""
        return tuple(self._outputs)

    def resize(self, scanout_id: int, width: int, height: int) -> None:
        """Offer another mode, in pixels; raise `InvalidScanoutId` for a bad scanout."""
        if scanout_id >= len(self._outputs):
            raise _no_scanout(scanout_id, len(self._outputs))
        self._outputs[scanout_id] = PreferredMode(width, height)

    def showing(self, scanout_id: int) -> tuple[int, int] | None:
        """Return the width and height of what a scanout shows; None if it is off."""
        scanout = self._active.get(ScanoutId(scanout_id))
        return None if scanout is None else scanout.size

    def attach(self, display: Display | None) -> None:
        """Show all scanouts on another display; None for no display."""
        self._display = display
        if display is not None:
            for scanout_id, scanout in self._active.items():
                display.scanout(scanout_id, *scanout.size)
                display.damage(scanout_id, scanout.whole)

    # Commands

    def display_info(
        self, command: commands.GetDisplayInfo
    ) -> responses.Response | Coroutine[Any, Any, responses.Response]:
        """Execute GET_DISPLAY_INFO: return the display's modes, without a display the device's
        own."""
        if self._display is not None:
            return self._display_modes(self._display)
        x = 0
        modes = []
        for output in self._outputs:  # side by side
            modes.append(
                responses.DisplayMode(Rect(x, 0, output.width, output.height), enabled=True)
            )
            x += output.width
        return responses.DisplayInfo(tuple(modes))

    def edid(
        self, command: commands.GetEdid
    ) -> responses.Response | Coroutine[Any, Any, responses.Response]:
        """Execute GET_EDID."""
        self.check(command.scanout)
        if self._display is not None:
            return self._display_edid(self._display, command.scanout)
        output = self._outputs[command.scanout]
        return responses.Edid(edid(output.width, output.height, name=f"vgpud {self._name}"[:13]))

    def set_scanout(self, command: commands.SetScanout) -> responses.Response:
        """Execute SET_SCANOUT; resource 0 turns the output off."""
        self.check(command.scanout_id)
        if command.resource_id == 0:
            self._turn_off(command.scanout_id)
            return OK
        image = self._resources.get(command.resource_id)
        if not isinstance(image, Image):
            raise _invalid(
                f"resource {image.id} is a blob: use SET_SCANOUT_BLOB, which has its layout"
            )
        rect = check_side(check_rect(command.rect, image.width, image.height))
        view = ScanoutState(
            command.scanout_id,
            image.id,
            rect,
            image.width,
            image.height,
            image.format,
            image.stride,
            offset=0,
        )
        self._show(Scanout(view, image))
        return OK

    def set_scanout_blob(self, command: commands.SetScanoutBlob) -> responses.Response:
        """Execute SET_SCANOUT_BLOB; resource 0 turns the output off.

        Only the first plane is used, because all formats have one.
        """
        self.check(command.scanout_id)
        if command.resource_id == 0:
            self._turn_off(command.scanout_id)
            return OK
        blob = self._resources.get(command.resource_id)
        if isinstance(blob, Image):
            raise _invalid(f"resource {blob.id} is an image: use SET_SCANOUT")
        rect = check_side(check_rect(command.rect, command.width, command.height))
        stride, offset = command.strides[0], command.offsets[0]
        row = command.width * BYTES_PER_PIXEL
        if stride < row or offset + stride * (command.height - 1) + row > blob.size:
            raise _invalid(
                f"{command.width}x{command.height} at {offset:#x}, stride {stride}, is more than "
                f"the {blob.size:#x} bytes of blob {blob.id}"
            )
        fmt = check_format(command.format)
        view = ScanoutState(
            command.scanout_id,
            blob.id,
            rect,
            command.width,
            command.height,
            fmt,
            stride,
            offset,
        )
        self._show(Scanout(view, blob))
        return OK

    def flush(self, command: commands.ResourceFlush) -> Answer:
        """Execute RESOURCE_FLUSH; the rectangle is in the resource's coordinates.

        The frame is taken before the command is answered, because the guest may change its pixels
        then; those of an image only by commands that wait for that (`unsettled`).
        """
        resource = self._resources.get(command.resource_id)
        if is_empty(command.rect):
            return OK
        is_image = isinstance(resource, Image)
        if isinstance(resource, Image):
            check_rect(command.rect, resource.width, resource.height)
        display = self._display
        if display is None and not self.captures:
            return OK
        waiting: list[Waiting] = []
        budget = Budget()
        for scanout_id, scanout in self._active.items():
            if scanout.resource is not resource:
                continue
            part = intersect(command.rect, scanout.view.rect)
            if part is None:
                continue
            x, y = part.x - scanout.view.rect.x, part.y - scanout.view.rect.y
            if display is not None:
                display.damage(scanout_id, Rect(x, y, part.width, part.height))
                if not is_image and not display.settle(scanout_id, budget):
                    waiting.append((display, scanout_id))
            if not self.captures.settle(scanout_id):
                waiting.append((self.captures, scanout_id))
        return _finish_flush(waiting) if waiting else OK

    @property
    def settled(self) -> bool:
        """Whether no frame has been flushed but not taken yet."""
        return self._display is None or not self._display.unsettled

    def unsettled(self, command: Command) -> Sequence[Waiting]:
        """Return what a command has to wait for, by `settle`, because it changes the pixels of a
        frame that has been flushed but not taken yet."""
        display = self._display
        if display is None:
            return ()
        budget = Budget()
        match command:
            case commands.SetScanout(scanout_id=shown) | commands.SetScanoutBlob(scanout_id=shown):
                return ((display, shown),) if display.taking(shown) else ()
            case (
                commands.TransferToHost2D(resource_id=drawn)
                | commands.TransferToHost3D(resource_id=drawn)
            ):
                return [
                    (display, scanout_id)
                    for scanout_id, scanout in self._active.items()
                    if scanout.resource.id == drawn and not display.settle(scanout_id, budget)
                ]
            case commands.Submit3D(header=header):
                return [
                    (display, scanout_id)
                    for scanout_id, scanout in self._active.items()
                    if self._is_attached(scanout.resource.id, header.ctx_id)
                    and not display.settle(scanout_id, budget)
                ]
        return ()

    def forget(self, resource_id: ResourceId) -> None:
        """Turn off every output that shows a resource that is being destroyed."""
        for scanout_id in [i for i, s in self._active.items() if s.resource.id == resource_id]:
            self._turn_off(scanout_id)

    def clear(self) -> None:
        """Turn off all outputs."""
        for scanout_id in list(self._active):
            self._turn_off(scanout_id)

    def check(self, scanout_id: int) -> None:
        """Raise `InvalidScanoutId` for an output that does not exist."""
        # With a display, the VMM decides how many outputs there are, and notifies the guest.
        count = MAX_SCANOUTS if self._display is not None else len(self._outputs)
        if scanout_id >= count:
            raise _no_scanout(scanout_id, count)

    def save(self) -> tuple[ScanoutState, ...]:
        """Return the states of the outputs that are on."""
        return tuple(scanout.view for scanout in self._active.values())

    def restore(self, state: ScanoutState) -> None:
        """Show what a saved output showed; its resource must exist."""
        self._show(Scanout(state, self._resources.get(state.resource)))

    def _show(self, scanout: Scanout) -> None:
        scanout_id = scanout.view.id
        before = self._active.get(scanout_id)
        self._active[scanout_id] = scanout
        self.captures.disturb(scanout_id)
        if self._display is None:
            return
        if before is None or before.size != scanout.size:
            self._display.scanout(scanout_id, *scanout.size)
        self._display.damage(scanout_id, scanout.whole)

    def _turn_off(self, scanout_id: ScanoutId) -> None:
        if self._active.pop(scanout_id, None) is None:
            return
        self.captures.disturb(scanout_id)
        if self._display is not None:
            self._display.scanout(scanout_id, 0, 0)

    @staticmethod
    async def _display_modes(display: Display) -> responses.Response:
        return responses.DisplayInfo(tuple(await display.modes()))

    @staticmethod
    async def _display_edid(display: Display, scanout_id: int) -> responses.Response:
        return responses.Edid(await display.edid(scanout_id))


async def settle(waiting: Sequence[Waiting]) -> None:
    """Wait until frames have been taken, as `Scanouts.unsettled` returned them."""
    for sink, scanout_id in waiting:
        await sink.finish_settling(scanout_id)


async def _finish_flush(waiting: Sequence[Waiting]) -> responses.Response:
    await settle(waiting)
    return OK


def _no_scanout(scanout_id: int, count: int) -> InvalidScanoutId:
    return InvalidScanoutId(f"scanout {scanout_id} of {count}")


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
