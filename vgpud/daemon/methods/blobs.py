"""blob.list, blob.create, blob.map, blob.unmap, blob.destroy and blob.export.

Blobs are the guest's or the VMM's own (`gpu.blobs.vmm_blobs`). A VMM can list and export both, but
can't change the guest's, because the guest's driver would not know of it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from vgpud.coherency.slot_policy import BlobKind, Layout
from vgpud.control import params
from vgpud.control.call import Caller, Handler, Reply, refused
from vgpud.control.models import Blob, BlobExport, Done, ErrorKind, MapInfoName, Page
from vgpud.control.rpc import ErrorCode, RpcError
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.lookup import (
    Section,
    as_guest_error,
    device_named,
    devices_of,
    live_device,
    page,
)
from vgpud.errors import HostError
from vgpud.gpu.blobs.commands import KINDS
from vgpud.gpu.blobs.per_blob_layout import PerBlobMemory
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.memory_types import map_info_name
from vgpud.gpu.resources import GuestBlob, HostBlob
from vgpud.slots.owner import TrackedSlots

T = TypeVar("T")

AnyBlob: TypeAlias = GuestBlob | HostBlob


@dataclass(frozen=True, slots=True)
class _Held:
    """A blob that a caller has named, and its device."""

    device: DeviceServer
    live: GpuDevice
    blob: HostBlob


class BlobMethods:
    """The methods about blobs; `devices` may change meanwhile."""

    def __init__(self, devices: Mapping[str, DeviceServer]) -> None:
        self._devices = devices

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {
            "blob.list": self._list,
            "blob.create": self._create,
            "blob.map": self._map,
            "blob.unmap": self._unmap,
            "blob.destroy": self._destroy,
            "blob.export": self._export,
        }

    async def _list(self, asked: params.PagedOfDevice, caller: Caller) -> Page[Blob]:
        devices = devices_of(self._devices, asked.device, caller)
        parts = [
            Section(device.live.gpu.blob_count, partial(_blobs, device, device.live.gpu))
            for device in devices
            if device.live is not None
        ]
        return await page(Page[Blob], parts, asked, lambda pair: describe(*pair))

    async def _create(self, asked: params.CreateBlob, caller: Caller) -> Blob:
        device = device_named(self._devices, asked.device)
        live = live_device(device)
        blob = await _done(live, live.gpu.vmm_blobs.create(asked.size))
        return describe(device, blob)

    async def _map(self, asked: params.MapBlob, caller: Caller) -> Blob:
        held = self._own(asked)
        blobs = held.live.gpu.vmm_blobs
        if asked.guest_phys_addr is None:
            await _done(held.live, blobs.map(held.blob, asked.offset))
        elif asked.offset is not None:
            text = "offset is in the BAR window, guest_phys_addr outside of it: give one of them"
            raise RpcError(ErrorCode.INVALID_PARAMS, text)
        else:
            slots = _ram_slots(held, asked.guest_phys_addr)
            await _done(held.live, blobs.map_ram(held.blob, slots, asked.guest_phys_addr))
        return describe(held.device, held.blob)

    async def _unmap(self, asked: params.OfBlob, caller: Caller) -> Blob:
        held = self._own(asked)
        if not held.blob.mapped:
            raise refused(ErrorKind.NOT_POSSIBLE, f"blob {held.blob.id} is not mapped")
        await _done(held.live, held.live.gpu.vmm_blobs.unmap(held.blob))
        return describe(held.device, held.blob)

    async def _destroy(self, asked: params.OfBlob, caller: Caller) -> Done:
        held = self._own(asked)
        await _done(held.live, held.live.gpu.vmm_blobs.destroy(held.blob))
        return Done()

    def _export(self, asked: params.OfBlob, caller: Caller) -> Reply:
        device = device_named(self._devices, asked.device)
        blob = _find(device, live_device(device).gpu, asked.blob)
        if isinstance(blob, GuestBlob):
            text = f"blob {blob.id} is in the guest's own memory, which its VMM has already"
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        try:
            exported = blob.memory.export()
        except OSError as error:
            raise HostError("dup of a blob's file", error, "raise LimitNOFILE") from error
        if exported is None:
            text = (
                f"blob {blob.id} has no memory before it is mapped into the window: map it first,"
                ' or use layout = "per-blob"'
            )
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        fd, offset = exported
        value = BlobExport(device=device.name, blob=blob.id, fd_offset=offset, size=blob.size)
        return Reply(value, fd)

    def _own(self, asked: params.OfBlob) -> _Held:
        """Return a blob of the VMM's own; raises RpcError if it is the guest's, or is not there."""
        device = device_named(self._devices, asked.device)
        live = live_device(device)
        blob = _find(device, live.gpu, asked.blob)
        if isinstance(blob, GuestBlob) or blob.id < FIRST_ID:
            text = f"blob {blob.id} is the guest's: only its driver maps, unmaps and destroys it"
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        return _Held(device, live, blob)


def describe(device: DeviceServer, blob: AnyBlob) -> Blob:
    """Return the description of a blob for clients."""
    origin: Literal["guest", "vmm"] = "guest" if blob.id < FIRST_ID else "vmm"
    if isinstance(blob, GuestBlob):
        return Blob(
            device=device.name,
            blob=blob.id,
            origin=origin,
            kind="guest",
            size=blob.size,
            mapped=False,
            offset=None,
            guest_phys_addr=None,
            map_info=None,
            flags=0,
            reason=None,
        )
    placement = blob.memory.placement
    offset = placement.offset if placement is not None and placement.mapped else None
    address = blob.memory.guest_phys_addr if isinstance(blob.memory, PerBlobMemory) else None
    base = device.slots.table.base if device.slots is not None else None
    if offset is not None and base is not None:
        address = base + offset
    return Blob(
        device=device.name,
        blob=blob.id,
        origin=origin,
        kind=KINDS[blob.blob_mem],
        size=blob.size,
        mapped=blob.mapped,
        offset=offset,
        guest_phys_addr=address,
        map_info=MapInfoName(map_info_name(blob.plan.memory_type)),
        flags=int(blob.plan.slot_flags),
        reason=blob.plan.reason,
    )


def _blobs(
    device: DeviceServer, gpu: Gpu, start: int, stop: int
) -> Iterator[tuple[DeviceServer, AnyBlob]]:
    return ((device, blob) for blob in gpu.blobs(start, stop))


def _find(device: DeviceServer, gpu: Gpu, blob_id: int) -> AnyBlob:
    blob = gpu.find_blob(blob_id)
    if blob is None:
        raise refused(ErrorKind.NO_BLOB, f"{device.name} has no blob {blob_id}")
    return blob


def _ram_slots(held: _Held, address: int) -> TrackedSlots:
    """Return the slots for a mapping outside of the window; raises RpcError if not possible."""
    device, spec = held.device, held.live.gpu.spec
    missing = []
    if held.live.slots is None:
        missing.append('slots = "agent", as a front-end maps into the BAR window only')
    if spec.layout is not Layout.PER_BLOB:
        missing.append('layout = "per-blob"')
    if not held.live.gpu.plans.rule(BlobKind.HOST3D, held.blob.size).allow_guest_ram:
        missing.append("allow_guest_ram = true in the slot_policy that matches the blob")
    slots = held.live.slots
    if missing or slots is None:
        text = f"a mapping outside of {device.name}'s BAR window needs {'; '.join(missing)}"
        raise refused(ErrorKind.NOT_POSSIBLE, text)
    base = slots.table.base
    if base is not None and address < base + spec.window and base < address + held.blob.size:
        text = f"{address:#x} is in the BAR window at {base:#x}: give an offset in it instead"
        raise refused(ErrorKind.NOT_POSSIBLE, text)
    return slots


async def _done(live: GpuDevice, operation: Coroutine[Any, Any, T]) -> T:
    with as_guest_error():
        return await live.perform(operation)
