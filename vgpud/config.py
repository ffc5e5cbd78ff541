"""A whole configuration: the operator's TOML file, checked, and what it means for the daemon.

Owns reading the file, the rules between tables, and the wording of every complaint; the tables
themselves are in `vgpud.config_tables`. Must not import `serve`, `host` or `uapi`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from vgpud.config_tables import DaemonTable, DeviceTable, MatchTable, SlotPolicyTable, Table
from vgpud.device.spec import DeviceSpec
from vgpud.errors import ConfigError
from vgpud.policy.slot_policy import Layout, Rule, layouts

MAX_SOCKET_PATH: Final = 107
"""Bytes. `sockaddr_un.sun_path` less its closing zero, unix(7)."""

# What later versions are to have: refused by name, since "unknown" would mislead, and a silent
# substitute would be worse.
_LATER_KEYS: Final = {
    "allow_users": "only the daemon's own user may use the control socket",
    "allow_groups": "only the daemon's own user may use the control socket",
    "allow_guest_ram": "guest RAM stays cached",
}
_LATER_VALUES: Final = {"udmabuf", "gem", "agent", "local", "guest"}


class Config(Table):
    """A whole configuration; raises ConfigError if its tables contradict one another."""

    daemon: DaemonTable = Field(default_factory=DaemonTable)
    device: tuple[DeviceTable, ...] = Field(default_factory=lambda: (DeviceTable(name="gpu0"),))
    slot_policy: tuple[SlotPolicyTable, ...] = ()

    @classmethod
    def default(cls) -> Self:
        """One device, gpu0, and the default for everything else; raises ConfigError."""
        return cls.from_toml("", source="built-in defaults")

    @classmethod
    def load(cls, path: str | Path | None) -> Self:
        """Read the file at `path`, or take the defaults if there is none; raises ConfigError."""
        if path is None:
            return cls.default()
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
        return cls.from_toml(text, source=str(path))

    @classmethod
    def from_toml(cls, text: str, source: str = "configuration") -> Self:
        """Parse `text`; raises ConfigError with every fault in it, a line each, led by `source`."""
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: is not TOML: {error}") from error
        faults = [
            f"{key} is no table of this file; known: [daemon], [[device]], [[slot_policy]]"
            for key in raw
            if key not in cls.model_fields
        ]
        [daemon] = _tables(DaemonTable, "[daemon]", [raw.get("daemon", {})], faults)
        policies = _tables(SlotPolicyTable, "[[slot_policy]]", raw.get("slot_policy", []), faults)
        devices = _tables(DeviceTable, "[[device]]", raw.get("device", [{"name": "gpu0"}]), faults)
        if raw.get("device") == []:
            faults.append("device: there must be at least one [[device]]")
        faults += _contradictions(daemon, devices, policies)
        if faults:
            raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))
        return cls.model_validate(raw)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if faults := list(_contradictions(self.daemon, self.device, self.slot_policy)):
            raise ConfigError("\n".join(faults))
        return self

    @property
    def runtime_dir(self) -> Path:
        """The directory that relative socket names are in."""
        return Path(self.daemon.runtime_dir)

    @property
    def control_path(self) -> Path | None:
        """The control socket, or None if there is to be none."""
        return self.runtime_dir / self.daemon.control_socket if self.daemon.control_socket else None

    def socket_path(self, device: str) -> Path:
        """The vhost-user socket of the device of that name; raises KeyError."""
        return self.runtime_dir / {table.name: table.socket_name for table in self.device}[device]

    def device_specs(self) -> tuple[DeviceSpec, ...]:
        """The devices in the file's order."""
        rules = tuple(policy.rule() for policy in self.slot_policy)
        return tuple(_device_spec(table, rules) for table in self.device)


def _device_spec(table: DeviceTable, rules: Sequence[Rule]) -> DeviceSpec:
    mine = tuple(rule for rule in rules if rule.match.covers_device(table.name))
    [layout] = layouts(mine, table.name)
    return DeviceSpec(
        name=table.name,
        window=table.window,
        memory_limit=table.memory_limit,
        outputs=table.outputs,
        guest_pat=table.guest_pat,
        rules=mine,
        layout=layout,
    )


def _contradictions(
    daemon: DaemonTable | None,
    devices: Sequence[DeviceTable | None],
    policies: Sequence[SlotPolicyTable | None],
) -> Iterator[str]:
    """What is wrong between tables; None stands for one that is wrong in itself."""
    users: dict[Path, str] = {}
    directory = Path(daemon.runtime_dir if daemon else "/run/vgpud")
    sockets = (
        [("control_socket", daemon.control_socket)] if daemon and daemon.control_socket else []
    )
    sockets += [(f"device {device.name}", device.socket_name) for device in devices if device]
    for user, socket in sockets:
        path = Path(os.path.normpath(directory / socket))
        if users.setdefault(path, user) != user:
            yield f"{user}: socket {path} is already that of {users[path]}"
        elif len(os.fsencode(path)) > MAX_SOCKET_PATH:
            yield f"{user}: socket {path} is longer than {MAX_SOCKET_PATH} bytes, the most there is"
    names = [device.name for device in devices if device]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"[[device]]: the name {_literal(name)} is used more than once"
    for number, policy in enumerate(policies[:-1], start=1):
        if policy and policy.match == MatchTable():
            yield f"[[slot_policy]] {number}: matches every blob, so no later one has any effect"
    if None in policies:
        return  # Which layout a device gets can't be told.
    rules = [policy.rule() for policy in policies if policy]
    for device in devices:
        if device is None:
            continue
        found = layouts(rules, device.name)
        if len(found) > 1:
            yield (
                f"device {device.name}: its host blobs would get both layouts, window and "
                "per-blob; make the policies for it agree (a blob that none matches gets window)"
            )
        elif found == {Layout.WINDOW} and device.window > device.memory_limit:
            yield (
                f"device {device.name}: memory_limit is less than window, though its guest can "
                "touch every page of the window; raise the limit or use the per-blob layout"
            )


_T = TypeVar("_T", bound=Table)


def _tables(model: type[_T], where: str, raw: Any, faults: list[str]) -> list[_T | None]:
    """Validate each table of an array on its own, so that one fault does not hide another."""
    if not isinstance(raw, list):
        faults.append(f"{where} = {_literal(raw)}: must be tables, each under a {where} heading")
        return []
    parsed: list[_T | None] = []
    for number, table in enumerate(raw, start=1):
        heading = f"{where} {number}" if where.startswith("[[") else where
        try:
            parsed.append(model.model_validate(table))
        except ValidationError as error:
            faults += [f"{heading}: {fault}" for fault in _faults(error, model)]
            parsed.append(None)
    return parsed


def _faults(error: ValidationError, model: type[Table]) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        value = _literal(fault["input"])
        words = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        match fault["type"]:
            case "extra_forbidden" if key in _LATER_KEYS:
                yield f"{key}: not available in this version: {_LATER_KEYS[key]}"
            case "extra_forbidden":
                table = MatchTable if key.startswith("match.") else model
                yield f"{key} = {value}: unknown key; known: {', '.join(table.model_fields)}"
            case "missing":
                yield f"{key} is missing"
            case "model_type":
                yield f"{key or 'it'} = {value}: must be a table"
            case "literal_error" | "enum" if fault["input"] in _LATER_VALUES:
                yield f"{key} = {value}: not available in this version; {words}"
            case _:
                yield f"{key} = {value}: {words}" if key else words


def default_toml() -> str:
    """The defaults as a file that says what each key is for; loading it gives the defaults."""
    sections = [
        "\n\n".join(["[daemon]", *_spelled_out(DaemonTable)]),
        "\n\n".join(["[[device]]", *_spelled_out(DeviceTable, name="gpu0")]),
        "\n\n".join(["[[slot_policy]]", *_spelled_out(SlotPolicyTable)]),
    ]
    return "\n\n".join(sections) + "\n"


def _spelled_out(model: type[Table], **given: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        about = [f"# {field.description}"]
        if field.annotation is MatchTable:
            about += [f"# - {sub}: {of.description}" for sub, of in MatchTable.model_fields.items()]
        if field.examples:  # The default follows from other things: show what it may look like.
            about.append(f"# {key} = {_literal(field.examples[0])}")
        else:
            about.append(f"{key} = {_literal(given.get(key, field.default))}")
        yield "\n".join(about)


def _literal(value: object) -> str:
    """A value as TOML spells it, cut where it gets too long for a line."""
    match value:
        case dict():
            text = "{ " + ", ".join(f"{key} = {_literal(of)}" for key, of in value.items()) + " }"
        case list() | tuple():
            text = "[" + ", ".join(map(_literal, value)) + "]"
        case str() | bool() | int() | float():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
