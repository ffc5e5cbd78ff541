"""What the daemon answers and announces: one frozen model for each result of the control API.

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
"""Where a blob's memory is: the guest's own, or a kind that slot policies are about."""


class MapInfoName(StrEnum):
    """What a guest is told to map a blob as, VIRTIO_GPU_MAP_CACHE_*."""

    CACHED = "cached"
    UNCACHED = "uncached"
    WC = "wc"


class ErrorKind(StrEnum):
    """`data.kind` of an error -32000: what went wrong, for programs."""

    NOT_ALLOWED = "not-allowed"  # the caller may not use this socket
    NO_DEVICE = "no-device"
    NO_FRONT_END = "no-front-end"  # nothing is connected to the device
    NO_BLOB = "no-blob"
    NO_AGENT = "no-agent"
    NOT_POSSIBLE = "not-possible"  # not on this device, or not in its present state
    BUSY = "busy"  # somebody else has it
    TOO_LARGE = "too-large"  # the answer does not fit into a datagram
    GUEST = "guest"  # what a guest would be answered too: out of memory, a range that is taken
    HOST = "host"  # the system refused; `data.errno` says how
    PEER = "peer"  # the other end of a connection broke its protocol
    CONFIG = "config"


class Model(BaseModel):
    """What all of them share: they do not change, and have no field but those listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Done(Model):
    """It was done, and there is nothing to tell of it."""


class DeviceSummary(Model):
    """A device, as `daemon.info` lists it."""

    name: str
    socket: str | None
    """Where front-ends connect; null for one that was handed its connection."""
    connected: bool


class DaemonInfo(Model):
    """The daemon."""

    version: str
    pid: int
    uptime_s: float
    config_file: str | None
    log_level: str
    devices: tuple[DeviceSummary, ...]


class Output(Model):
    """One scanout: the mode that the guest is offered, and what it shows at the moment."""

    scanout: Count
    width: Count
    height: Count
    showing: tuple[int, int] | None
    """Width and height of the picture; null while the guest has the output turned off."""


class Agent(Model):
    """A VMM's slot agent, as it is attached to a device."""

    device: str
    pid: int | None
    uid: int | None
    guest_phys_addr: int | None
    """Where the guest has the BAR window; null while it is nowhere."""
    first_slot: Count
    slot_count: Count
    flags: Count
    """The flags that the agent grants."""
    flag_accepted: bool | None
    """Whether a slot with KVM_MEM_NON_COHERENT_DMA was set by trial; null where none was tried."""
    vm_setup: tuple[str, ...]
    kvm_mode: str
    reason: str


class Device(Model):
    """A device and how it stands."""

    name: str
    socket: str | None
    connected: bool
    front_end_pid: int | None
    layout: Layout
    window: Bytes
    memory_limit: Bytes
    memory_used: Bytes
    buffers: ResolvedBuffers
    """What host blobs are made of now, whatever the configuration leaves open."""
    render_node: str | None
    renderers: tuple[str, ...]
    """What executes contexts; with none, this is a display device."""
    slots: SlotOwner
    guest_pat: GuestPat
    kvm_mode: str | None
    """What decides the guest's memory types; null until a guest's driver needed to know."""
    kvm_reason: str | None
    outputs: tuple[Output, ...]
    display: bool
    """Whether a VMM's display is attached, which then decides about outputs itself."""
    resources: Count
    blobs: Count
    contexts: Count
    agent: Agent | None
    problems: tuple[str, ...]
    """What is not as the configuration wants it, and why: fallbacks, refusals, a missing GPU."""


class Resized(Model):
    """A scanout's new preferred mode."""

    device: str
    scanout: Count
    width: Count
    height: Count


class Screenshot(Model):
    """A picture, in the descriptor that comes with it: a file of `size` bytes."""

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
    """The guest's resource id, or for a blob of the VMM's a number above all of those."""
    origin: Literal["guest", "vmm"]
    kind: BlobKindName
    size: Bytes
    mapped: bool
    offset: int | None
    """Where in the BAR window it is mapped."""
    guest_phys_addr: int | None
    """Where the guest has it, as far as that is known here."""
    map_info: MapInfoName | None
    flags: Count
    reason: str | None
    """Why the plan for it is what it is; null for one in guest memory."""


class BlobExport(Model):
    """Where a blob is in the file whose descriptor comes with this."""

    device: str
    blob: int
    fd_offset: Bytes
    size: Bytes


class Slot(Model):
    """A mapping of host memory into the guest."""

    device: str
    owner: SlotOwner
    slot: int | None
    """Its number; null where the front-end made it, and has the number to itself."""
    use: SlotUse
    flags: Count
    bar_offset: int | None
    guest_phys_addr: int | None
    memory_size: Bytes


Item = TypeVar("Item", bound=Model)


class Page(Model, Generic[Item]):
    """Part of a listing: `items` from number `offset` on, of `total` that there are now.

    It may be shorter than was asked for, where a datagram holds no more: ask on from the next.
    """

    items: tuple[Item, ...]
    offset: Count
    total: Count


class Detached(Model):
    """An agent that is no longer asked for anything."""

    device: str
    slots: tuple[int, ...]
    """The slots that it had set, and that it is now to delete."""


class Subscription(Model):
    """What a client gets as `event` notifications from now on."""

    kinds: tuple[str, ...]
    device: str | None
    sequence: Count
    """The number of the last event before: the first to come has a higher one."""


class Unsubscribed(Model):
    """Whether there was a subscription to end."""

    was_subscribed: bool


class Event(Model):
    """Parameters of an `event` notification."""

    sequence: Count
    """Counts all events of the daemon, so that a gap shows which were not subscribed to."""
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
    """What became of a configuration that was read anew, a line for each change."""

    applied: tuple[str, ...]
    next_connection: tuple[str, ...]
    """What holds once the device's front-end connects anew."""
    restart: tuple[str, ...]
    """What takes a restart of the daemon."""
