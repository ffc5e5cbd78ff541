"""The specification of a device, made of the configuration after its checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vgpud.coherency.slot_policy import Buffers, GuestPat, Layout, Rule, SlotOwner


@dataclass(frozen=True, slots=True)
class PreferredMode:
    """A scanout's preferred mode, in pixels."""

    width: int
    height: int


FRAMES_A_PICTURE: Final = 3
"""Frames of an output's size that a guest is charged for at least: one of its own, the shadow, and
a copy of the frame that a slow display is being sent."""


def picture_memory(outputs: Iterable[PreferredMode]) -> int:
    """Return how many bytes a guest that uses all outputs is charged for its pictures at
    least."""
    return sum(FRAMES_A_PICTURE * 4 * output.width * output.height for output in outputs)


class RendererName(StrEnum):
    """The renderers. DMA: vgpud's own DMA engine (capset 30)."""

    DMA = "dma"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One virtio-GPU device.

    `window` is the size of the host-visible BAR window and `memory_limit` all that the guest can
    make the daemon allocate, both in bytes. `outputs` are the scanouts in order, 1 to 16 of them.
    `layout` is the one layout on which all of `rules` agree for this device. `render_node` is the
    GPU whose buffers are to be used, None for any. `renderers` are in order of preference; without
    any, this is a display device only.
    """

    name: str
    window: int
    memory_limit: int
    outputs: tuple[PreferredMode, ...]
    guest_pat: GuestPat
    rules: tuple[Rule, ...]
    layout: Layout
    slots: SlotOwner = SlotOwner.FRONTEND
    buffers: Buffers = Buffers.AUTO
    render_node: str | None = None
    renderers: tuple[RendererName, ...] = (RendererName.DMA,)
