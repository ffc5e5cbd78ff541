"""slot.list: the mappings of host memory into guests, and their slot owners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control import params
from vgpud.control.call import Caller, Handler
from vgpud.control.models import Page, Slot
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.lookup import Section, devices_of, page
from vgpud.slots.entries import Entry, SlotUse
from vgpud.slots.front_end import FrontEndMappings
from vgpud.slots.owner import TrackedSlots


class SlotMethods:
    """The method about slots; `devices` may change meanwhile."""

    def __init__(self, devices: Mapping[str, DeviceServer]) -> None:
        self._devices = devices

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {"slot.list": self._list}

    async def _list(self, asked: params.PagedOfDevice, caller: Caller) -> Page[Slot]:
        parts = map(slots_of, devices_of(self._devices, asked.device, caller))
        return await page(Page[Slot], parts, asked, lambda make: make())


def slots_of(device: DeviceServer) -> Section[Callable[[], Slot]]:
    """Return a device's mappings: the slots of its table, or what its front-end has mapped."""
    if device.slots is not None:
        return Section(len(device.slots.table), partial(_tracked, device, device.slots))
    if device.live is None:
        return Section(0, lambda start, stop: ())
    mappings = device.live.mappings
    return Section(len(mappings), partial(_mapped, device.name, mappings))


def _tracked(
    device: DeviceServer, slots: TrackedSlots, start: int, stop: int
) -> list[Callable[[], Slot]]:
    owner = device.slot_owner
    return [
        partial(_slot, device.name, owner, entry, address)
        for entry, address in slots.part(start, stop)
    ]


def _slot(device: str, owner: SlotOwner, entry: Entry, address: int | None) -> Slot:
    return Slot(
        device=device,
        owner=owner,
        slot=entry.slot,
        use=entry.use,
        flags=int(entry.flags),
        bar_offset=entry.offset if entry.use is SlotUse.BAR else None,
        guest_phys_addr=address,
        memory_size=entry.size,
    )


def _mapped(
    device: str, mappings: FrontEndMappings, start: int, stop: int
) -> list[Callable[[], Slot]]:
    return [
        partial(_mapping, device, offset, length) for offset, length in mappings.part(start, stop)
    ]


def _mapping(device: str, offset: int, length: int) -> Slot:
    return Slot(
        device=device,
        owner=SlotOwner.FRONTEND,
        slot=None,
        use=SlotUse.BAR,
        flags=0,
        bar_offset=offset,
        guest_phys_addr=None,
        memory_size=length,
    )
