"""slot.list: the mappings of host memory into guests, and their slot owners."""

from __future__ import annotations

from collections.abc import Mapping

from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control import params
from vgpud.control.call import Caller, Handler
from vgpud.control.models import Page, Slot
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.lookup import devices_of, page
from vgpud.slots.entries import SlotUse


class SlotMethods:
    """The method about slots; `devices` may change meanwhile."""

    def __init__(self, devices: Mapping[str, DeviceServer]) -> None:
        self._devices = devices

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {"slot.list": self._list}

    def _list(self, asked: params.PagedOfDevice, caller: Caller) -> Page[Slot]:
        found = [
            slot for device in devices_of(self._devices, asked.device) for slot in slots_of(device)
        ]
        return page(Page[Slot], found, asked, lambda slot: slot)


def slots_of(device: DeviceServer) -> list[Slot]:
    """Return a device's mappings: the slots of its table, or what its front-end has mapped."""
    if device.slots is not None:
        return [
            Slot(
                device=device.name,
                owner=device.slot_owner,
                slot=entry.slot,
                use=entry.use,
                flags=int(entry.flags),
                bar_offset=entry.offset if entry.use is SlotUse.BAR else None,
                guest_phys_addr=address,
                memory_size=entry.size,
            )
            for entry, address in device.slots.entries()
        ]
    if device.live is None:
        return []
    return [
        Slot(
            device=device.name,
            owner=SlotOwner.FRONTEND,
            slot=None,
            use=SlotUse.BAR,
            flags=0,
            bar_offset=offset,
            guest_phys_addr=None,
            memory_size=length,
        )
        for offset, length in sorted(device.live.mappings().items())
    ]
