"""The choice of the buffers for a device's host blobs, by its configuration and what the host has.

The sources that allocate the buffers are in `memory`.
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
    """A device's buffers: their kind and their source.

    `fallback` is the reason if they are not what the configuration asks for.
    """

    kind: ResolvedBuffers
    source: BufferSource
    fallback: str | None = None

    def problems(self) -> tuple[str, ...]:
        """Return why buffers are not what the configuration asks for, and why none can be allocated
        now."""
        now = self.source.problem()
        return tuple(reason for reason in (self.fallback, now) if reason is not None)


def resolve(spec: DeviceSpec, nodes: RenderNodes | None = None) -> BlobBuffers:
    """Return the buffers for a device. `nodes` are the host's GPUs; None to look them up.

    What the configuration names is used even if it is missing now: it may be there later, and until
    then allocations fail. AUTO is the GPU of `render_node` if that is usable now; else udmabuf if
    the front-end is not the slot owner; else memory files.
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
    """Return the GPU that a device's configuration asks for, if it is present now."""
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
    # Pinned pages are needed for slots with the flag, which a stock VMM does not set. So none are
    # pinned for it unless the configuration says so.
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
