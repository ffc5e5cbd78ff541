"""What a caller gives: one strict model for the parameters of each method of the control API.

Units as in `models`.
"""

from __future__ import annotations

from typing import Annotated, Final, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from vgpud.coherency.plan import VmSetup
from vgpud.control.slot_calls import MAX_SLOTS, GuestAddress, SlotFlags, SlotNumber
from vgpud.uapi.memslot import SlotFlag

MAX_PAGE: Final = 1000
"""Items. What fits into a datagram is less, for most listings."""

VmSetupName: TypeAlias = Annotated[
    VmSetup,
    Field(strict=False),
    WithJsonSchema({"enum": [step.value for step in VmSetup], "type": "string"}),
]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=63)]
BlobId: TypeAlias = Annotated[int, Field(ge=1, lt=1 << 63)]
BlobSize: TypeAlias = Annotated[int, Field(gt=0, lt=1 << 63)]
Side: TypeAlias = Annotated[int, Field(ge=32, le=8192)]  # pixels: Linux's driver takes no other
ScanoutNumber: TypeAlias = Annotated[int, Field(ge=0, lt=16)]


class Params(BaseModel):
    """What all of them share. An array of values in the order of the fields is as good."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Nothing(Params):
    """A method without parameters."""


class Paged(Params):
    """Which part of a listing."""

    offset: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE


class PagedOfDevice(Paged):
    """Which part of a listing, of one device or of all."""

    device: Name | None = None


class OfDevice(Params):
    """One device."""

    device: Name


class Resize(OfDevice):
    """A preferred mode for one output, in pixels."""

    width: Side
    height: Side
    scanout: ScanoutNumber = 0


class TakeScreenshot(OfDevice):
    """One output."""

    scanout: ScanoutNumber = 0


class CreateBlob(OfDevice):
    """A host blob for the VMM's own use, of whole pages."""

    size: BlobSize


class OfBlob(OfDevice):
    """One blob."""

    blob: BlobId


class MapBlob(OfBlob):
    """A place for a blob of the VMM's: `offset` in the BAR window (by default a free one, from the
    end down), or a guest-physical address outside of it, where slots are an agent's."""

    offset: GuestAddress | None = None
    guest_phys_addr: GuestAddress | None = None


class AttachAgent(OfDevice):
    """What an agent offers: to be asked for slots of these numbers, with no flags but these.

    Attached again by the same client: the BAR has moved.
    """

    guest_phys_addr: GuestAddress | None
    """Where the guest has the BAR window; null while it is nowhere."""
    first_slot: SlotNumber
    slot_count: Annotated[int, Field(ge=1, le=1 << 15)]
    flags: SlotFlags = int(SlotFlag.NON_COHERENT_DMA)  # the one that a daemon asks for
    vm_setup: tuple[VmSetupName, ...] = Field(default=(), strict=False)
    """What the VMM did to its VM before the guest ran, for it to honour the guest's PAT."""

    @model_validator(mode="after")
    def _there_are_such_slots(self) -> Self:
        if self.first_slot + self.slot_count > MAX_SLOTS:
            text = f"first_slot {self.first_slot} and slot_count {self.slot_count}"
            raise ValueError(f"{text}: slots end at {MAX_SLOTS}")
        return self


class Subscribe(Params):
    """Which events: shell-style patterns of their kinds, and one device's or all."""

    kinds: Annotated[tuple[Name, ...], Field(min_length=1, max_length=32)] = Field(
        default=("*",), strict=False
    )
    device: Name | None = None


class PagedText(Params):
    """Which part of a text, in characters."""

    offset: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
