"""What a device's host blobs are made of: the configuration's choice, as far as this host has it.

Owns the choice; the sources make the buffers, and know what memory they are in.
"""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.coherency.slot_policy import Buffers, Layout, ResolvedBuffers, SlotOwner
from vgpud.gpu.spec import DeviceSpec
from vgpud.memory.buffers import BufferSource, MemfdSource
from vgpud.memory.gem import GemSource
from vgpud.memory.render_nodes import HostGpu, RenderNodes
from vgpud.memory.udmabuf import UdmabufSource


@dataclass(frozen=True, slots=True)
class BlobBuffers:
    """A device's buffers: their `kind` and where they come from. `fallback` says why they are not
    what the configuration would have."""

    kind: ResolvedBuffers
    source: BufferSource
    fallback: str | None = None

    def problems(self) -> tuple[str, ...]:
        """Return what is not as the configuration would have it, and what keeps buffers from being
        had now."""
        now = self.source.problem()
        return tuple(reason for reason in (self.fallback, now) if reason is not None)


def resolve(spec: DeviceSpec, nodes: RenderNodes | None = None) -> BlobBuffers:
    """Choose for a device. `nodes` are the GPUs, looked up if they are needed and not given.

    What the configuration names is taken, there or not: what is missing may come, and until then no
    buffer can be had. AUTO takes the GPU of `render_node` if it will do now; else a udmabuf if
    somebody else than the front-end sets the slots; else a memory file.
    """
    if spec.layout is Layout.WINDOW:
        return _memfd(_not_in_a_window(spec))
    match spec.buffers:
        case Buffers.MEMFD:
            return _memfd()
        case Buffers.UDMABUF:
            return _udmabuf(UdmabufSource())
        case Buffers.GEM:
            return _gem(GemSource(nodes or RenderNodes(), spec.render_node))
        case Buffers.AUTO:
            return _auto(spec, nodes)


def gpu_of(spec: DeviceSpec, nodes: RenderNodes) -> HostGpu | None:
    """Return the GPU that a device's configuration is about, if that is here now."""
    if spec.layout is Layout.WINDOW:
        return None
    if spec.render_node is not None and spec.buffers in {Buffers.GEM, Buffers.AUTO}:
        return nodes.find(spec.render_node)
    return GemSource(nodes).any() if spec.buffers is Buffers.GEM else None


def _auto(spec: DeviceSpec, nodes: RenderNodes | None) -> BlobBuffers:
    fallback = None
    if spec.render_node is not None:
        gem = GemSource(nodes or RenderNodes(), spec.render_node)
        fallback = gem.problem()
        if fallback is None:
            return _gem(gem)
        fallback = f"not in buffers of {spec.render_node}: {fallback}"
    if spec.slots is not SlotOwner.FRONTEND:
        udmabuf = UdmabufSource()
        if udmabuf.problem() is None:
            return _udmabuf(udmabuf, fallback)
    # A stock VMM maps any file; what pinned pages are good for, slots that pass by the cache, it
    # does not set. So nothing is pinned for it unless it is asked for.
    return _memfd(fallback)


def _not_in_a_window(spec: DeviceSpec) -> str | None:
    why = 'other buffers than memory files need layout = "per-blob"'
    if spec.buffers in {Buffers.UDMABUF, Buffers.GEM}:
        return f"not {spec.buffers}: {why}"
    if spec.render_node is not None and spec.buffers is Buffers.AUTO:
        return f"not in buffers of {spec.render_node}: {why}"
    return None


def _memfd(fallback: str | None = None) -> BlobBuffers:
    return BlobBuffers(Buffers.MEMFD, MemfdSource(), fallback)


def _udmabuf(source: UdmabufSource, fallback: str | None = None) -> BlobBuffers:
    return BlobBuffers(Buffers.UDMABUF, source, fallback)


def _gem(source: GemSource) -> BlobBuffers:
    return BlobBuffers(Buffers.GEM, source)
