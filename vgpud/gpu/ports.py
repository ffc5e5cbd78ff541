"""What the device needs of the world around it, as interfaces that other packages (or a test)
implement.

Owns no behaviour. The device itself does no I/O: it returns a response, or a coroutine that waits
on one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.timelines import Timeline
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.wire.responses import DisplayMode
from vgpud.gpu.work import Done, Work
from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd


class BarSlots(Protocol):
    """Puts memory files into the guest's host-visible window, through whoever owns the VM."""

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        """Map `length` bytes of the file, read-write; return once the VMM has done so, else raise
        `HostError`. `flags` (KVM_MEM_*) are the memory slot's, where the owner makes one."""

    async def unmap(self, bar_offset: int, length: int) -> None:
        """Take back exactly what one `map` put there; raise `HostError` where the VMM refuses."""


class RamSlots(Protocol):
    """Puts memory files anywhere into the guest's address space: at `SlotUse.RAM`, `offset` is a
    guest-physical address. Otherwise as `BarSlots`."""

    async def map(
        self, fd: Fd, fd_offset: int, offset: int, length: int, /, *, flags: int, use: SlotUse
    ) -> None:
        """Map `length` bytes of the file, read-write."""

    async def unmap(self, offset: int, length: int, /, *, use: SlotUse) -> None:
        """Take back exactly what one `map` put there."""


class Works(Protocol):
    """The device's long work, which is done in order and off the event loop."""

    @property
    def submitted(self) -> int:
        """How much work there has been so far."""

    def busy(self, resource: ResourceId) -> bool:
        """Tell whether submitted work that touches the resource has not been done yet."""

    async def drained(self, resource: ResourceId) -> None:
        """Wait until all work submitted so far that touches the resource is done."""

    async def run_in_thread(self, copy: Callable[[], None]) -> None:
        """Run a long copy on another thread, and waits for it."""


class StepRunner(Works, Protocol):
    """The executor of the device's work, as a renderer has it."""

    def submit(self, key: Timeline, work: Work, done: Done) -> None:
        """Queue work; `done` is called on the event loop when it and all before it on its timeline
        are done."""

    async def pause(self) -> None:
        """Stop between two steps: no work touches any buffer after this, until `resume`."""

    def resume(self) -> None:
        """Go on where `pause` stopped."""

    def drop(self) -> None:
        """Forget all work that has not been done; `pause` comes first. Its `done` is never
        called."""


class Display(Protocol):
    """A VMM that shows our scanouts. Nothing here waits but the two questions."""

    def scanout(self, scanout_id: int, width: int, height: int) -> None:
        """Take note that a scanout has a new size; 0 x 0 turns it off."""

    def damage(self, scanout_id: int, rect: Rect) -> None:
        """Take note that a part of a scanout, in its own coordinates, shows something new."""

    def cursor_update(
        self, scanout_id: int, x: int, y: int, hot_x: int, hot_y: int, image: NDArray[np.uint8]
    ) -> None:
        """Show another cursor: `image` is (64, 64, 4) of uint8, premultiplied B, G, R, A."""

    def cursor_move(self, scanout_id: int, x: int, y: int, *, visible: bool) -> None:
        """Move, show or hide the cursor."""

    async def modes(self) -> Sequence[DisplayMode]:
        """Return the sixteen outputs as the VMM wants them; raise `Unspecified` if it does not
        answer."""

    async def edid(self, scanout_id: int) -> bytes:
        """Return the VMM's own EDID for a scanout; raise `Unspecified` if it has none or does not
        answer."""
