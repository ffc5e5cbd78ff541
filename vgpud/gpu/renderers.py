"""The renderers that a device can have, by their names in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from vgpud.gpu.counters import Counters
from vgpud.gpu.dma_renderer import DmaRenderer
from vgpud.gpu.images import Images
from vgpud.gpu.quota import Quota
from vgpud.gpu.renderer import Renderer
from vgpud.gpu.spec import RendererName
from vgpud.gpu.work import WorkExecutor


@dataclass(frozen=True, slots=True)
class RendererParts:
    """The parts of a device that its renderers use; `max_blob_size` is in bytes."""

    executor: WorkExecutor
    images: Images
    quota: Quota
    counters: Counters
    max_blob_size: int


MakeRenderers: TypeAlias = Callable[[Sequence[RendererName], RendererParts], Sequence[Renderer]]
"""A function that returns the renderers of a device, in the order of their names."""


def make_renderers(names: Sequence[RendererName], parts: RendererParts) -> tuple[Renderer, ...]:
    """Return new renderers of these names, in the same order."""
    return tuple(_make(name, parts) for name in names)


def _make(name: RendererName, parts: RendererParts) -> Renderer:
    match name:
        case RendererName.DMA:
            return DmaRenderer(
                parts.executor, parts.images, parts.quota, parts.counters, parts.max_blob_size
            )
        case _ as unreachable:
            assert_never(unreachable)
