"""Resources: the objects that a guest names by a resource id, their memory and their charges.

Commands on them are in `gpu.images` and `gpu.blobs.commands`. Source: virtio 1.3, 5.7.6.1
"Resources".
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias
from weakref import ref

import numpy as np

from vgpud.coherency.plan import Plan
from vgpud.errors import GuestAddressError, OutOfMemory, VgpudError, stored
from vgpud.gpu.blobs.layout import HostMemory
from vgpud.gpu.errors import InvalidParameter, InvalidResourceId, Unspecified
from vgpud.gpu.guest_memory import LONG_LIST, GuestMemory
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.state import (
    GuestBlobState,
    HostBlobState,
    ImageState,
    Pages,
    PlacementState,
    ResourceState,
)
from vgpud.gpu.wire.mem_entries import MemEntries, bytes_kept, mem_entries
from vgpud.gpu.wire.protocol import BlobMem, Format, ResourceId
from vgpud.gpu.work import BackgroundWork
from vgpud.memory.extents import Extents
from vgpud.pace import Pace
from vgpud.sorted_numbers import SortedNumbers
from vgpud.vhost.memory_table import MemoryTable

OVERHEAD = 4096
"""Bytes that every resource and context costs in addition to its contents, about. This limits how
many a guest can make."""

SPAN_COST = 48
"""Bytes that an extent costs: its span, its end, its address in the guest and its canonical one."""

BYTES_PER_PIXEL = 4
"""The same in all eight formats."""


_Resolved: TypeAlias = tuple[ref[MemoryTable], Extents | InvalidParameter | OutOfMemory]


class Backing:
    """A resource's guest memory: the guest's scatter-gather list, which is resolved in the memory
    table when it is used, and again when that table changes."""

    def __init__(self, memory: GuestMemory, entries: MemEntries, charge: Charge) -> None:
        self.entries = entries
        self._memory = memory
        self._size: int | None = None
        self._charge: Charge | None = charge
        self._resolved: _Resolved | None = None

    @property
    def size(self) -> int:
        """The bytes of all entries."""
        if self._size is None:
            self._size = int(self.entries["length"].sum(dtype=np.uint64))
        return self._size

    @property
    def stale(self) -> bool:
        """Whether the list has to be resolved again, and is so long that it takes a while."""
        resolved = self._resolved
        return len(self.entries) > LONG_LIST and (
            resolved is None or not self._memory.is_current(resolved[0])
        )

    @property
    def extents(self) -> Extents:
        """The list's extents in the present memory table.

        Raises `InvalidParameter` where an entry is not guest memory, and `OutOfMemory`.
        """
        resolved = self._resolved
        if resolved is None or not self._memory.is_current(resolved[0]):
            resolved = self._keep(self._resolve())
        found = resolved[1]
        if isinstance(found, InvalidParameter):
            raise InvalidParameter(str(found))
        if isinstance(found, OutOfMemory):
            raise OutOfMemory(str(found))
        self._size = found.size
        return found

    async def resolve(self, quota: Quota, executor: BackgroundWork) -> None:
        """Resolve a long list in a thread, for `extents`; raise `OutOfMemory`."""
        async with self._memory.resolved(self.entries, quota, executor):
            try:
                self._keep(self._resolve())
            except InvalidParameter as error:
                self._resolved = self._memory.mark(), stored(error)

    def save(self) -> Pages:
        """Return the list's entries."""
        entries = self.entries
        return tuple(zip(entries["addr"].tolist(), entries["length"].tolist(), strict=True))

    def release(self) -> None:
        """Release the list's charge, for good: it may be in the middle of being resolved."""
        if self._charge is not None:
            self._charge.release()
            self._charge = None

    def _keep(self, extents: Extents) -> _Resolved:
        """Keep extents, and charge those that are more than there are entries; for want of memory,
        keep the error, because resolving them again takes as long."""
        found: Extents | OutOfMemory = extents
        try:
            if self._charge is not None:
                self._charge.resize(_cost(self.entries, extents.fragments))
        except OutOfMemory as error:
            found = stored(error)
        self._resolved = self._memory.mark(), found
        return self._resolved

    def _resolve(self) -> Extents:
        try:
            return self._memory.resolve(self.entries)
        except GuestAddressError as error:
            raise InvalidParameter(f"backing: {error}") from error


def restore_backing(memory: GuestMemory, pages: Pages | None, quota: Quota) -> Backing | None:
    """Return a resource's saved backing, None if it had none; raise `OutOfMemory`.

    An entry need not be guest memory: a region may have been removed after it was attached.
    """
    if pages is None:
        return None
    backing = _backing(memory, mem_entries(*pages), quota)
    if not backing.stale:
        with suppress(InvalidParameter):
            _ = backing.extents  # which may cost more than the entries
    return backing


def make_backing(memory: GuestMemory, entries: MemEntries, quota: Quota) -> Backing:
    """Resolve a scatter-gather list, and charge what it keeps: itself, or all of its request, and
    `SPAN_COST` for each entry, or for each extent if they are more.

    Raises `InvalidParameter` where an entry is not guest memory, and `OutOfMemory`.
    """
    backing = _backing(memory, entries, quota)
    try:
        _ = backing.extents
    except VgpudError:
        backing.release()
        raise
    return backing


def _backing(memory: GuestMemory, entries: MemEntries, quota: Quota) -> Backing:
    return Backing(memory, entries, quota.charge(_cost(entries)))


def _cost(entries: MemEntries, extents: int = 0) -> int:
    """Return how many bytes a list keeps that is resolved to some extents."""
    return bytes_kept(entries) + SPAN_COST * max(len(entries), extents)


@dataclass(slots=True, eq=False)
class Image:
    """A 2D resource: `pixels` are `height` rows of `width` pixels without gaps, in host
    memory."""

    id: ResourceId
    width: int
    height: int
    format: Format
    pixels: Extents
    charge: Charge
    backing: Backing | None = None
    uuid: uuid.UUID | None = None

    @property
    def stride(self) -> int:
        """The distance of two rows in bytes."""
        return self.width * BYTES_PER_PIXEL

    @property
    def size(self) -> int:
        """The size of all pixels in bytes."""
        return self.stride * self.height

    def contents(self) -> Extents:
        """Return the pixels' bytes."""
        return self.pixels

    def save(self) -> ImageState:
        """Return the image's state."""
        pixels = self.pixels.read(0, self.size).tobytes()
        backing = _saved(self.backing)
        return ImageState(self.id, self.width, self.height, self.format, pixels, backing, self.uuid)


@dataclass(slots=True, eq=False)
class GuestBlob:
    """A blob in guest memory only."""

    id: ResourceId
    size: int
    charge: Charge
    backing: Backing | None
    uuid: uuid.UUID | None = None

    def contents(self) -> Extents:
        """Return the guest's pages; raise `Unspecified` once they have been detached."""
        if self.backing is None:
            raise Unspecified(f"blob {self.id} has no backing")
        return self.backing.extents

    def save(self) -> GuestBlobState:
        """Return the blob's state."""
        return GuestBlobState(self.id, self.size, _saved(self.backing), self.uuid)


@dataclass(slots=True, eq=False)
class HostBlob:
    """A blob in host memory, which its layout allocates (`gpu.blobs.layout`)."""

    id: ResourceId
    blob_mem: BlobMem
    size: int
    mappable: bool
    plan: Plan
    charge: Charge
    memory: HostMemory
    backing: Backing | None = None
    uuid: uuid.UUID | None = None

    @property
    def mapped(self) -> bool:
        """Whether it is mapped into the guest."""
        return self.memory.mapped

    def contents(self) -> Extents:
        """Return the bytes where they are now; raise `Unspecified` if they are lost."""
        return self.memory.contents()

    def save(self) -> HostBlobState:
        """Return the blob's state; raise `VgpudError` if its bytes are lost."""
        placement = self.memory.placement
        return HostBlobState(
            self.id,
            self.blob_mem,
            self.size,
            self.mappable,
            self.plan.memory_type,
            self.contents().read(0, self.size).tobytes(),
            None if placement is None else PlacementState(placement.offset, placement.mapped),
            _saved(self.backing),
            self.uuid,
        )


def _saved(backing: Backing | None) -> Pages | None:
    return None if backing is None else backing.save()


Resource: TypeAlias = Image | GuestBlob | HostBlob


class ResourceTable:
    """The resources of one device by id."""

    def __init__(self) -> None:
        self._by_id: dict[ResourceId, Resource] = {}
        self._blobs = SortedNumbers()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_id.values())

    def __contains__(self, resource: Resource) -> bool:
        return self._by_id.get(resource.id) is resource

    @property
    def blob_count(self) -> int:
        """The number of blobs among them."""
        return len(self._blobs)

    def blobs(self, start: int, stop: int) -> list[GuestBlob | HostBlob]:
        """Return a part of the blobs, which are in the order of their ids."""
        found = (self._by_id[ResourceId(number)] for number in self._blobs.part(start, stop))
        return [blob for blob in found if not isinstance(blob, Image)]

    def check_free(self, resource_id: ResourceId) -> None:
        """Raise `InvalidResourceId` if a new resource can't have this id."""
        if resource_id == 0 or resource_id in self._by_id:
            raise InvalidResourceId(f"resource {resource_id} can't be made")

    def add(self, resource: Resource) -> None:
        """Add a new resource."""
        self._by_id[resource.id] = resource
        if not isinstance(resource, Image):
            self._blobs.add(resource.id)

    def find(self, resource_id: ResourceId) -> Resource | None:
        """Return the resource of this id, if there is one."""
        return self._by_id.get(resource_id)

    def get(self, resource_id: ResourceId) -> Resource:
        """Return the resource of this id; raise `InvalidResourceId` where there is none."""
        resource = self._by_id.get(resource_id)
        if resource is None:
            raise InvalidResourceId(f"no resource {resource_id}")
        return resource

    def host_blob(self, resource_id: ResourceId) -> HostBlob:
        """Return the host blob of this id; raise `InvalidParameter` if it is something else."""
        resource = self.get(resource_id)
        if not isinstance(resource, HostBlob):
            raise InvalidParameter(f"resource {resource_id} is not a host blob")
        return resource

    def remove(self, resource: Resource) -> None:
        """Remove a resource and release its charges, but not what its layout has allocated."""
        del self._by_id[resource.id]
        self._removed(resource)

    def _removed(self, resource: Resource) -> None:
        if not isinstance(resource, Image):
            self._blobs.remove(resource.id)
        if resource.backing is not None:
            resource.backing.release()
        resource.charge.release()

    def save(self) -> tuple[ResourceState, ...]:
        """Return the states of all resources."""
        return tuple(resource.save() for resource in self)

    async def empty(self) -> None:
        """Remove all resources, in steps that let the event loop run."""
        pace = Pace()
        while self._by_id:
            _, resource = self._by_id.popitem()
            self._removed(resource)
            await pace.step()

    def clear(self) -> None:
        """Remove all resources."""
        for resource in list(self._by_id.values()):
            self.remove(resource)
