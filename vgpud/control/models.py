"""The results and events of the control API: one frozen model for each.

Sizes, offsets and addresses are in bytes, times in seconds; `flags` are those of memory slots,
KVM_MEM_*.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from vgpud.coherency.slot_policy import BlobKind, GuestPat, Layout, ResolvedBuffers, SlotOwner
from vgpud.publish import Json
from vgpud.slots.entries import SlotUse

Count: TypeAlias = Annotated[int, Field(ge=0)]
Bytes: TypeAlias = Annotated[int, Field(ge=0)]
BlobKindName: TypeAlias = Literal["guest", BlobKind.HOST3D, BlobKind.HOST3D_GUEST]
"""The kind of a blob: in guest memory, or one of the kinds of host blobs."""


class MapInfoName(StrEnum):
    """The memory type with which the guest maps a blob, VIRTIO_GPU_MAP_CACHE_*."""

    CACHED = "cached"
    UNCACHED = "uncached"
    WC = "wc"


class ErrorKind(StrEnum):
    """The kind of an error -32000, in `data.kind`."""

    NOT_ALLOWED = "not-allowed"  # the caller lacks the grant; `data.grant` says which
    NO_DEVICE = "no-device"
    NO_FRONT_END = "no-front-end"  # nothing is connected to the device
    NO_BLOB = "no-blob"
    NO_AGENT = "no-agent"
    NOT_POSSIBLE = "not-possible"  # not on this device, or not in its present state
    BUSY = "busy"  # another client has it
    TIMED_OUT = "timed-out"  # it was not done in the time that the call gave it, and given up
    TOO_LARGE = "too-large"  # the answer does not fit into a datagram
    GUEST = "guest"  # a guest would be refused it too: out of memory, a range that is in use
    HOST = "host"  # the system refused; `data.errno` says how
    PEER = "peer"  # the other end of a connection broke its protocol
    CONFIG = "config"


class Model(BaseModel):
    """The base of all results: frozen, and without fields other than those listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Done(Model):
    """An empty result: the call was done."""


class DeviceSummary(Model):
    """A device, as `daemon.info` lists it."""

    name: str
    socket: str | None
    """Where front-ends connect; null for a device that was given its connection."""
    connected: bool


class DaemonInfo(Model):
    """The daemon and its devices."""

    version: str
    pid: int
    uptime_s: float
    config_file: str | None
    log_level: str
    devices: tuple[DeviceSummary, ...]


class Output(Model):
    """An output: the mode that the guest is offered, and what it shows at the moment."""

    scanout: Count
    width: Count
    height: Count
    showing: tuple[int, int] | None
    """Width and height of the picture; null while the guest has the output turned off."""


class Agent(Model):
    """A VMM's slot agent that is attached to a device."""

    device: str
    pid: int | None
    uid: int | None
    guest_phys_addr: int | None
    """Where the guest has mapped the BAR window; null while it is not mapped."""
    first_slot: Count
    slot_count: Count
    flags: Count
    """The flags that the agent grants."""
    flag_accepted: bool | None
    """Whether KVM took a trial slot with KVM_MEM_NON_COHERENT_DMA; null where none was tried."""
    vm_setup: tuple[str, ...]
    kvm_mode: str
    reason: str


class DeviceDetails(Model):
    """A device and its state."""

    name: str
    socket: str | None
    connected: bool
    front_end_pid: int | None
    layout: Layout
    window: Bytes
    memory_limit: Bytes
    memory_used: Bytes
    buffers: ResolvedBuffers
    """The memory that host blobs are made of; with `auto` in the configuration, what was chosen."""
    render_node: str | None
    renderers: tuple[str, ...]
    """The renderers that execute contexts; with none, the device is a display device."""
    slots: SlotOwner
    guest_pat: GuestPat
    kvm_mode: str | None
    """What decides the guest's memory types; null until a guest's driver needs to know."""
    kvm_reason: str | None
    outputs: tuple[Output, ...]
    display: bool
    """Whether a VMM's display is attached, which then decides about outputs itself."""
    resources: Count
    blobs: Count
    contexts: Count
    agent: Agent | None
    problems: tuple[str, ...]
    """What differs from the configuration, and why: fallbacks, refusals, a missing GPU."""


class Resized(Model):
    """A scanout's new preferred mode."""

    device: str
    scanout: Count
    width: Count
    height: Count


class Screenshot(Model):
    """A picture in a file of `size` bytes, whose descriptor comes with the answer."""

    device: str
    scanout: Count
    width: Count
    height: Count
    format: Literal["png"]
    size: Bytes


class Blob(Model):
    """A blob resource of a device."""

    device: str
    blob: int
    """The guest's resource id, or for a blob of the VMM's a number above all resource ids."""
    origin: Literal["guest", "vmm"]
    kind: BlobKindName
    size: Bytes
    mapped: bool
    offset: int | None
    """The offset in the BAR window at which it is mapped."""
    guest_phys_addr: int | None
    """The guest-physical address, if the daemon knows it."""
    map_info: MapInfoName | None
    flags: Count
    reason: str | None
    """The reason for the blob's plan; null for a blob in guest memory."""


class BlobExport(Model):
    """The range of a blob in the file whose descriptor comes with the answer."""

    device: str
    blob: int
    fd_offset: Bytes
    size: Bytes


class Slot(Model):
    """A mapping of host memory into the guest."""

    device: str
    owner: SlotOwner
    slot: int | None
    """The slot number; null where the front-end chose it and the daemon does not know it."""
    use: SlotUse
    flags: Count
    bar_offset: int | None
    guest_phys_addr: int | None
    memory_size: Bytes


Item = TypeVar("Item", bound=Model)


class Page(Model, Generic[Item]):
    """Part of a listing: `items` from number `offset` on, of `total` that there are now.

    It may have fewer items than were asked for, where a datagram holds no more. The next page
    begins at `offset` plus the number of items.
    """

    items: tuple[Item, ...]
    offset: Count
    total: Count


class Detached(Model):
    """An agent that is no longer called."""

    device: str
    slots: tuple[int, ...]
    """The slots that it has set, and that it should delete now."""


class Subscription(Model):
    """The events that a client gets as `event` notifications from now on."""

    kinds: tuple[str, ...]
    device: str | None
    sequence: Count
    """The number of the last event before the subscription: later events have higher ones."""


class Unsubscribed(Model):
    """Whether there was a subscription to end."""

    was_subscribed: bool


class Event(Model):
    """The parameters of an `event` notification."""

    sequence: Count
    """The event's number. All events of the daemon count, also those not subscribed to."""
    time: float
    """Seconds since 1970."""
    kind: str
    device: str | None
    resource: int | None
    message: str
    data: dict[str, Json]


class Metrics(Model):
    """Part of the daemon's metrics in OpenMetrics text: whole lines from character `offset` on."""

    content_type: str
    text: str
    offset: Count
    total: Count


class Reloaded(Model):
    """The changes of a configuration that was read again, a line for each."""

    applied: tuple[str, ...]
    next_connection: tuple[str, ...]
    """Changes that take effect when the device's front-end connects again."""
    restart: tuple[str, ...]
    """Changes that take effect when the daemon is restarted."""
