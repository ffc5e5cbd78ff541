"""The tables of the operator's TOML file as frozen pydantic models, one class a table.

They define the keys, their units, limits and defaults, the messages about bad values, and when a
changed value takes effect. A table is checked by itself here; `vgpud.daemon.config` checks them
together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from vgpud.coherency.slot_policy import (
    DEFAULT_RULE,
    BlobKind,
    Buffers,
    Fallback,
    GuestPat,
    Layout,
    Match,
    MemoryType,
    Rule,
    SlotOwner,
)
from vgpud.control.grants import AccessGrant
from vgpud.gpu.spec import PreferredMode, RendererName
from vgpud.unix.accounts import MAX_ID, is_number, number_of
from vgpud.unix.file_names import as_text
from vgpud.unix.socket_place import SOCKET_MODE

_Name = TypeVar("_Name", bound=str)

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

SIZE_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MAX_SIZE: Final = (1 << 63) - 1
"""Bytes. The largest file offset that the kernel has."""
MIN_WINDOW: Final = 64 << 10
"""Bytes. Below this a window does not hold one small picture, 128x128 pixels of 4 bytes."""
MAX_OUTPUTS: Final = 16
"""VIRTIO_GPU_MAX_SCANOUTS, virtio 1.3, 5.7.6.8."""
OUTPUT_SIDE: Final = range(32, 8192 + 1)
"""Pixels. Linux's virtio_gpu driver takes no mode outside of it."""

_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"
_ACCOUNT: Final = r"[^:\x00-\x1f\x7f]+"
"""What can be a field of passwd(5) and group(5). Which names exist, the system's databases know."""
_MODE: Final = r"0?[67][0-7]{2}"


def default_runtime_dir(environment: Mapping[str, str]) -> str:
    """Return the sockets' default directory as the text that a file would have for it: systemd's,
    else the user's, else /run/vgpud."""
    if granted := environment.get("RUNTIME_DIRECTORY"):
        # systemd lists all of them, separated by colons.
        return as_text(granted.split(":", maxsplit=1)[0])
    if session := environment.get("XDG_RUNTIME_DIR"):
        return as_text(f"{session}/vgpud")
    return "/run/vgpud"


def size_text(size: int) -> str:
    """Return a number of bytes in the file's notation, in the largest unit that divides it."""
    for unit, factor in reversed(SIZE_UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size >> 10}KiB"


def _size(value: object) -> int:
    match = re.fullmatch(r"([0-9]{1,19})(KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a size is a whole number and a unit, KiB, MiB or GiB, as in "256MiB"')
    size = int(match[1]) * SIZE_UNITS[match[2]]
    if size > MAX_SIZE:
        raise ValueError("must be less than 8589934592GiB, where file offsets end")
    return size


def _window(size: int) -> int:
    if size < MIN_WINDOW or size & (size - 1):
        raise ValueError("must be a power of two and 64KiB or more, as it is the size of a PCI BAR")
    return size


def _limit(size: int) -> int:
    if size == 0:
        raise ValueError("must be more than zero")
    return size


def _output(value: object) -> PreferredMode:
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('an output is its preferred mode in pixels, as in "1280x800"')
    output = PreferredMode(int(match[1]), int(match[2]))
    if output.width not in OUTPUT_SIDE or output.height not in OUTPUT_SIDE:
        raise ValueError("width and height must be 32 to 8192 pixels, as guests take no other")
    return output


def _path(value: str) -> str:
    if "\0" in value:
        raise ValueError("a path can't contain a NUL character")
    return value


def _file(value: str) -> str:
    if (value and Path(value).name in ("", "..")) or value.endswith(("/", "/.")):
        raise ValueError("must be the path of a file, not of a directory")
    return _path(value)


def _absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _account(value: str) -> str:
    """Check a user's or group's name or number; whether it exists is not checked."""
    if not re.fullmatch(_ACCOUNT, value) or value.isspace():
        raise ValueError('a user or group is a name, as in "kvm", or a number, as in "107"')
    if is_number(value) and number_of(value) is None:
        raise ValueError(f"the number of a user or group is at most {MAX_ID}")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError(
            "a name is 1 to 63 of A-Z a-z 0-9 _ . - and starts with none of the last two"
        )
    return value


def _mode(value: str) -> str:
    if not re.fullmatch(_MODE, value):
        raise ValueError('a mode is octal permissions that let the owner in, as in "0660"')
    return value


def _count(outputs: tuple[PreferredMode, ...]) -> tuple[PreferredMode, ...]:
    if not 1 <= len(outputs) <= MAX_OUTPUTS:
        raise ValueError(f"must be 1 to {MAX_OUTPUTS} outputs")
    return outputs


def _distinct(names: tuple[_Name, ...]) -> tuple[_Name, ...]:
    if len({*names}) < len(names):
        raise ValueError("names the same one twice")
    return names


def _spelled(default: Any, **schema: int) -> Any:
    """Return a field with a default in the operator's notation, which validation converts.

    `schema` has additional members of the JSON schema.
    """
    return Field(default=default, json_schema_extra={**schema})


Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)$"}),
]
OutputMode = Annotated[
    PreferredMode,
    BeforeValidator(_output),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+x[0-9]+$"}),
]
Account = Annotated[
    str, AfterValidator(_account), WithJsonSchema({"type": "string", "pattern": f"^{_ACCOUNT}$"})
]
Accounts: TypeAlias = tuple[Account, ...]
AbsolutePath = Annotated[
    str,
    AfterValidator(_absolute),
    AfterValidator(_path),
    WithJsonSchema({"type": "string", "pattern": "^/"}),
]


class Effect(Enum):
    """When a changed value takes effect after the file has been read again."""

    AT_ONCE = auto()
    NEXT_CONNECTION = auto()
    RESTART = auto()


@dataclass(frozen=True, slots=True)
class OnReload:
    """What a changed value of a key means; `vgpud.daemon.reload` acts on it.

    `resized`, of an array: when it takes effect if its length has changed, if that is another time.
    `ordered`, of an array: another order is a change. `shown_as`: the property of the table that
    has the value in force, if that is not the key itself.
    """

    effect: Effect
    resized: Effect | None = None
    ordered: bool = True
    shown_as: str | None = None


AT_ONCE: Final = OnReload(Effect.AT_ONCE)
NEXT_CONNECTION: Final = OnReload(Effect.NEXT_CONNECTION)
RESTART: Final = OnReload(Effect.RESTART)


def on_reload(table: type[Table]) -> dict[str, OnReload]:
    """Return by key what a changed value means, for the keys of `table` that can change.

    What takes effect at once is first, and what can take effect at two times is last.
    """
    found = [
        (key, means)
        for key, field in table.model_fields.items()
        for means in field.metadata
        if isinstance(means, OnReload)
    ]
    return dict(sorted(found, key=lambda item: (item[1].resized is not None, item[1].effect.value)))


UNORDERED: Final = OnReload(Effect.AT_ONCE, ordered=False)


class Table(BaseModel):
    """What all tables share: they do not change, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DaemonTable(Table):
    """The daemon itself."""

    runtime_dir: Annotated[AbsolutePath, RESTART] = Field(
        default_factory=lambda: default_runtime_dir(os.environ), examples=["/run/vgpud"]
    )
    """The directory of the sockets; by default $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/vgpud, or
    /run/vgpud."""
    control_socket: Annotated[str, AfterValidator(_file), RESTART] = "control.sock"
    """The socket of the control API, relative to runtime_dir; "" for none."""
    allow_users: Annotated[Accounts, UNORDERED] = ("root",)
    """Users who may call every method for every device over the control socket, besides the
    daemon's own: names or numbers."""
    allow_groups: Annotated[Accounts, UNORDERED] = ()
    """Groups whose members may do so. Not one of VMMs' processes, such as "kvm": then a guest that
    has broken out of its VMM could reach the memory of all other guests."""
    observe_users: Annotated[Accounts, UNORDERED] = ()
    """Users who may observe the daemon and every device, screenshots included."""
    observe_groups: Annotated[Accounts, UNORDERED] = ()
    """Groups whose members may do so."""
    log_level: Annotated[LogLevel, AT_ONCE] = "info"
    """What is logged: "debug", "info", "warning" or "error" and above; --log-level overrides it."""


class DeviceTable(Table):
    """A virtio-GPU device."""

    name: Annotated[str, AfterValidator(_name)] = Field(json_schema_extra={"pattern": f"^{_NAME}$"})
    """Its name in slot policies and in the control API."""
    socket: Annotated[
        Annotated[str, Field(min_length=1), AfterValidator(_file)] | None,
        OnReload(Effect.RESTART, shown_as="socket_name"),
    ] = Field(default=None, examples=["gpu0.sock"])
    """Its vhost-user socket, relative to runtime_dir; by default NAME.sock."""
    window: Annotated[Size, AfterValidator(_window), NEXT_CONNECTION] = _spelled("256MiB")
    """The host-visible BAR window: a power of two, 64KiB or more."""
    memory_limit: Annotated[Size, AfterValidator(_limit), AT_ONCE] = _spelled("1GiB")
    """The most memory that this guest can make the daemon allocate."""
    outputs: Annotated[
        tuple[OutputMode, ...],
        AfterValidator(_count),
        OnReload(Effect.AT_ONCE, resized=Effect.NEXT_CONNECTION),
    ] = _spelled(("1280x800",), minItems=1, maxItems=MAX_OUTPUTS)
    """The preferred modes of 1 to 16 outputs."""
    buffers: Annotated[Buffers, NEXT_CONNECTION] = Buffers.AUTO
    """What host blobs are made of: "memfd" (memory files), "udmabuf" (pinned memory files, as
    dma-bufs), "gem" (buffers of a GPU's driver), or "auto", the best that there is. "udmabuf" and
    "gem" need the per-blob layout."""
    render_node: Annotated[AbsolutePath | None, NEXT_CONNECTION] = Field(
        default=None, examples=["/dev/dri/renderD128"]
    )
    """The GPU whose buffers are used, with "gem" or "auto"; by default the first suitable."""
    slots: Annotated[SlotOwner, NEXT_CONNECTION] = SlotOwner.FRONTEND
    """Who maps blobs into the guest: "frontend", the VMM at the other end of the socket; "agent", a
    VMM that sets memory slots when the daemon asks it to, over the control socket; "local", this
    process, in a VMM that imports vgpud as a library."""
    guest_pat: Annotated[GuestPat, AT_ONCE] = GuestPat.AUTO
    """Whether KVM honours the guest's memory types (its PAT): "honored", "ignored", or "auto",
    which looks at the VMM's process. A wrong value brings stale data back."""
    renderers: Annotated[tuple[RendererName, ...], AfterValidator(_distinct), NEXT_CONNECTION] = (
        Field(default=(RendererName.DMA,), json_schema_extra={"uniqueItems": True})
    )
    """What executes the guest's contexts, the preferred one first: "dma", the daemon's own DMA
    engine. With none, [], the device is a display device, without contexts and host blobs."""
    socket_group: Annotated[Account | None, RESTART] = Field(default=None, examples=["kvm"])
    """The group of the socket, a name or a number; by default that of the daemon's process. Only
    root can give the socket to a group that the daemon is not in. A socket that systemd opens has
    the group and the mode that its unit says."""
    socket_mode: Annotated[str, AfterValidator(_mode), RESTART] = Field(
        default=f"{SOCKET_MODE:04o}", json_schema_extra={"pattern": f"^{_MODE}$"}
    )
    """The permissions of the socket, in octal as chmod(1) takes them. A VMM that may write to the
    socket can connect to it."""

    allow_users: Annotated[Accounts, UNORDERED] = ()
    """Users who may call methods for this device, besides those of [daemon]: names or numbers."""
    allow_groups: Annotated[Accounts, UNORDERED] = ()
    """Groups whose members may do so."""
    grants: Annotated[tuple[AccessGrant, ...], AfterValidator(_distinct), UNORDERED] = Field(
        default=tuple(AccessGrant), json_schema_extra={"uniqueItems": True}
    )
    """What allow_users and allow_groups of this device may do with it: "observe" (see states,
    events and screenshots), "change" (resize outputs), "memory" (export and map blobs, be its slot
    agent)."""

    @property
    def socket_name(self) -> str:
        """The socket as given, else as it follows from the name."""
        return self.socket or f"{self.name}.sock"


class MatchTable(Table):
    """The host blobs that a slot policy is for; without any key, all of them."""

    device: str = "*"
    """A shell-style pattern of device names."""
    blob: BlobKind | None = None
    """One kind of blob, "host3d" or "host3d_guest"; by default both."""
    min_size: Size = _spelled("0KiB")
    """The smallest blob that matches."""
    max_size: Size | None = None
    """The largest blob that matches; by default no limit."""

    @model_validator(mode="after")
    def _some_size(self) -> Self:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError("max_size is less than min_size, so that nothing can match")
        return self


class SlotPolicyTable(Table):
    """What is wanted of blobs in host memory. The first policy that matches a blob wins."""

    match: MatchTable = Field(
        default_factory=MatchTable,
        examples=[{"device": "gpu*", "blob": "host3d", "min_size": "4KiB"}],
    )
    """The blobs that this policy is for; without it, all host blobs."""
    memory_type: MemoryType = DEFAULT_RULE.memory_type
    """The memory type with which guest and host map them: "wc" (write-combined), "uc" (uncached) or
    "wb" (cached)."""
    fallback: Fallback = DEFAULT_RULE.fallback
    """Where that can't be had: "flush" (mapped cached, flushed at sync points), "snoop" (mapped
    cached, and the device snoops) or "refuse" (an error to the guest)."""
    layout: Layout = DEFAULT_RULE.layout
    """How blobs are mapped into the BAR: "window", one mapping for all, or "per-blob", one for
    each. All policies for a device have to agree."""
    allow_guest_ram: bool = Field(default=DEFAULT_RULE.allow_guest_ram, strict=True)
    """Whether blobs of the VMM's own may be mapped outside of the BAR window, with
    KVM_MEM_NON_COHERENT_DMA. This needs layout = "per-blob", and slots = "agent" or "local". The
    guest must not map these pages with another memory type as well (page aliasing)."""

    def rule(self) -> Rule:
        """Return the policy as a rule of `vgpud.coherency.slot_policy`."""
        match = self.match
        return Rule(
            Match(match.device, match.blob, match.min_size, match.max_size),
            self.memory_type,
            self.fallback,
            self.layout,
            self.allow_guest_ram,
        )
