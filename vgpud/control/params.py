"""The parameters of the control API: one strict model for each method.

The units are those of `control.models`.
"""

from __future__ import annotations

from typing import Annotated, Final, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from vgpud.coherency.plan import VmSetup
from vgpud.control.slot_calls import MAX_SLOTS, GuestAddress, SlotFlags, SlotNumber
from vgpud.uapi.memslot import SlotFlag

MAX_PAGE: Final = 1000
"""Items. Of most listings, fewer fit into a datagram."""

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
    """The base of all parameters. A call may also give an array, in the order of the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Nothing(Params):
    """There are no parameters."""


class Paged(Params):
    """The part of a listing to return."""

    offset: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE


class PagedOfDevice(Paged):
    """The part of a listing to return, for one device or for all."""

    device: Name | None = None


class OfDevice(Params):
    """The device."""

    device: Name


class Resize(OfDevice):
    """The preferred mode for an output, in pixels."""

    width: Side
    height: Side
    scanout: ScanoutNumber = 0


class TakeScreenshot(OfDevice):
    """The output."""

    scanout: ScanoutNumber = 0


class CreateBlob(OfDevice):
    """The size of a host blob for the VMM's own use; it is a multiple of the page size."""

    size: BlobSize


class OfBlob(OfDevice):
    """The blob."""

    blob: BlobId


class MapBlob(OfBlob):
    """Where to map a blob of the VMM's: at `offset` in the BAR window, or outside of the window.

    By default a free offset is chosen, from the window's end down. A guest-physical address outside
    of the window needs a slot agent, or slots = "local".
    """

    offset: GuestAddress | None = None
    guest_phys_addr: GuestAddress | None = None


class AttachAgent(OfDevice):
    """An agent's offer: the slot numbers and the slot flags that the daemon may use.

    A client attaches again when its guest has moved the BAR.
    """

    guest_phys_addr: GuestAddress | None
    """Where the guest has mapped the BAR window; null while it is not mapped."""
    first_slot: SlotNumber
    slot_count: Annotated[int, Field(ge=1, le=1 << 15)]
    flags: SlotFlags = int(SlotFlag.NON_COHERENT_DMA)  # the only one that the daemon sets
    vm_setup: tuple[VmSetupName, ...] = Field(default=(), strict=False)
    """What the VMM did, before the guest ran, so that KVM honours the guest's PAT."""

    @model_validator(mode="after")
    def _there_are_such_slots(self) -> Self:
        if self.first_slot + self.slot_count > MAX_SLOTS:
            text = f"first_slot {self.first_slot} and slot_count {self.slot_count}"
            raise ValueError(f"{text}: slots end at {MAX_SLOTS}")
        return self


class Subscribe(Params):
    """The events to send: shell-style patterns of their kinds, and one device or all."""

    kinds: Annotated[tuple[Name, ...], Field(min_length=1, max_length=32)] = Field(
        default=("*",), strict=False
    )
    device: Name | None = None


class PagedText(Params):
    """The part of a text to return, in characters."""

    offset: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
