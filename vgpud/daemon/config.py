"""A whole configuration: it reads the operator's TOML file, checks it and describes its faults.

The tables themselves are in `vgpud.daemon.config_tables`; the rules between tables are here.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from vgpud.coherency.slot_policy import Buffers, Layout, Rule, SlotOwner, layouts
from vgpud.control.field_docs import WithFieldDocs, field_docs
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.daemon import config_warnings
from vgpud.daemon.config_tables import (
    DaemonTable,
    DeviceTable,
    MatchTable,
    SlotPolicyTable,
    Table,
    size_text,
)
from vgpud.daemon.log_limit import UNLIMITED
from vgpud.daemon.toml_literal import literal
from vgpud.errors import ConfigError
from vgpud.gpu.spec import DeviceSpec
from vgpud.unix.file_names import file_name
from vgpud.unix.socket_file import CLIENTS
from vgpud.unix.socket_place import SocketPlace

log = logging.getLogger(__name__)

MAX_SOCKET_PATH: Final = 107
"""Bytes. `sockaddr_un.sun_path` less its closing zero, unix(7)."""

_WORDS: Final = {
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "tuple_type": "must be an array",
}
"""What pydantic's words for a value of a wrong type are in the terms of TOML."""


class Config(Table):
    """A whole configuration; raises ConfigError if its tables contradict one another."""

    daemon: DaemonTable = Field(default_factory=DaemonTable)
    device: tuple[DeviceTable, ...] = Field(
        default_factory=lambda: (DeviceTable(name="gpu0"),), json_schema_extra={"minItems": 1}
    )
    slot_policy: tuple[SlotPolicyTable, ...] = ()
    _path: Path | None = PrivateAttr(default=None)

    @classmethod
    def default(cls) -> Self:
        """Return a configuration with one device, gpu0, and defaults; raises ConfigError."""
        return cls.from_toml("", source="built-in defaults")

    @classmethod
    def load(cls, path: str | Path | None) -> Self:
        """Read the file at `path`, or take the defaults if there is none; raises ConfigError.

        It remembers where it is from, in `path`.
        """
        if path is None:
            return cls.default()
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: is not UTF-8 text, so save it as that: {error}") from error
        config = cls.from_toml(text, source=str(path))
        config._path = Path(path).absolute()  # noqa: SLF001 - of our own class
        return config

    @classmethod
    def from_toml(cls, text: str, source: str = "configuration") -> Self:
        """Parse `text`; raises ConfigError with every fault in it, a line each, led by `source`."""
        try:
            raw = tomllib.loads(text.removeprefix("\ufeff"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: is not TOML: {error}") from error
        except (RecursionError, ValueError) as error:  # which it lets through
            deep = isinstance(error, RecursionError)
            reason = "nested too deeply" if deep else str(error)
            raise ConfigError(f"{source}: is not TOML that can be read: {reason}") from None
        faults = [
            f"{key} = {literal(value)}: no table of this file; known: [daemon], [[device]], "
            "[[slot_policy]]"
            for key, value in raw.items()
            if key not in cls.model_fields
        ]
        [daemon] = _tables(DaemonTable, "[daemon]", [raw.get("daemon", {})], faults)
        devices = _tables(DeviceTable, "[[device]]", raw.get("device", [{"name": "gpu0"}]), faults)
        if raw.get("device") == []:
            faults.append("device = []: there must be at least one [[device]], or no such key")
        policies = _tables(SlotPolicyTable, "[[slot_policy]]", raw.get("slot_policy", []), faults)
        faults += _contradictions(daemon, devices, policies)
        if faults:
            raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))
        return cls.model_validate(raw)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Raise ConfigError if the tables contradict one another, with every fault."""
        if faults := list(_contradictions(self.daemon, self.device, self.slot_policy)):
            raise ConfigError("\n".join(faults))

    def warnings(self) -> Iterator[str]:
        """Yield what is valid, but is not likely to be meant."""
        yield from config_warnings.found(self.daemon, self.device, self.slot_policy)

    def host_warnings(self) -> Iterator[str]:
        """Yield what is valid, but not as things are on this host."""
        yield from config_warnings.found_on_this_host(self.access_rules(), self.device)

    def log_warnings(self) -> None:
        """Log all warnings."""
        for warning in self.warnings():
            log.warning("configuration: %s", warning, extra=UNLIMITED)

    @property
    def path(self) -> Path | None:
        """The file that this was read from, absolute; None if it is from no file."""
        return self._path

    @property
    def runtime_dir(self) -> Path:
        """The directory that relative socket names are in."""
        return Path(file_name(self.daemon.runtime_dir))

    @property
    def control_path(self) -> Path | None:
        """The control socket, or None if there is to be none."""
        name = self.daemon.control_socket
        return self.runtime_dir / file_name(name) if name else None

    def socket_path(self, device: str) -> Path:
        """Return the path of a device's vhost-user socket; raises KeyError."""
        return self.socket_place(device).path

    def socket_place(self, device: str) -> SocketPlace:
        """Return the path, mode and group of a device's vhost-user socket; raises KeyError."""
        table = {table.name: table for table in self.device}[device]
        mode = int(table.socket_mode, base=8)
        path = self.runtime_dir / file_name(table.socket_name)
        return SocketPlace(path, mode, table.socket_group)

    def access_rules(self) -> tuple[AccessRule, ...]:
        """Return who may call which methods of the control API, for which devices."""
        daemon = self.daemon
        return (
            AccessRule(daemon.allow_users, daemon.allow_groups),
            AccessRule(
                daemon.observe_users,
                daemon.observe_groups,
                frozenset({AccessGrant.OBSERVE}),
                prefix="observe",
            ),
            *(
                AccessRule(
                    table.allow_users, table.allow_groups, frozenset(table.grants), table.name
                )
                for table in self.device
            ),
        )

    def device_specs(self) -> tuple[DeviceSpec, ...]:
        """Return the devices in the file's order."""
        rules = tuple(policy.rule() for policy in self.slot_policy)
        return tuple(_device_spec(table, rules) for table in self.device)


_KEYS_OF_THE_SPEC: Final = DeviceTable.model_fields.keys() & {
    field.name for field in fields(DeviceSpec)
}


def _device_spec(table: DeviceTable, rules: Sequence[Rule]) -> DeviceSpec:
    mine = tuple(rule for rule in rules if rule.match.covers_device(table.name))
    [layout] = layouts(mine, table.name)
    return DeviceSpec(
        rules=mine, layout=layout, **{key: getattr(table, key) for key in _KEYS_OF_THE_SPEC}
    )


def _contradictions(
    daemon: DaemonTable | None,
    devices: Sequence[DeviceTable | None],
    policies: Sequence[SlotPolicyTable | None],
) -> Iterator[str]:
    """Yield the contradictions between tables; None stands for a table with faults of its own."""
    yield from _shared_sockets(daemon, devices)
    names = [device.name for device in devices if device]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"[[device]]: name = {literal(name)}: used more than once; each needs its own"
    for number, policy in enumerate(policies[:-1], start=1):
        if policy and policy.match == MatchTable():
            yield f"[[slot_policy]] {number}: matches every blob, so no later one has any effect"
    if None in policies:
        return  # A device's layout is not known without all policies.
    rules = [policy.rule() for policy in policies if policy]
    for number, device in enumerate(devices, start=1):
        if device is not None:
            for fault in _device_faults(device, rules):
                yield f"[[device]] {number}: {fault} (device {device.name})"
    if None not in devices:
        for number, rule in enumerate(rules, start=1):
            if rule.allow_guest_ram and not any(
                _reaches_guest_ram(device, rule) for device in devices if device
            ):
                yield (
                    f"[[slot_policy]] {number}: allow_guest_ram = true: of no effect; it needs "
                    'layout = "per-blob", and a device that matches with slots = "agent" or "local"'
                )


def _shared_sockets(
    daemon: DaemonTable | None, devices: Sequence[DeviceTable | None]
) -> Iterator[str]:
    directory = Path(daemon.runtime_dir if daemon else "/run/vgpud")
    sockets = {}
    if daemon and daemon.control_socket:
        sockets["[daemon]: control_socket"] = daemon.control_socket
    names = set()
    for number, device in enumerate(devices, start=1):
        if device and device.name not in names:  # else it is the name that is at fault
            names.add(device.name)
            sockets[f"[[device]] {number}: socket"] = device.socket_name
    paths = {user: Path(os.path.normpath(directory / socket)) for user, socket in sockets.items()}
    users: dict[Path, str] = {}
    for user, path in paths.items():
        users.setdefault(path, user)
    control = paths.get("[daemon]: control_socket")
    clients = control.parent / CLIENTS if control is not None else None
    for user, path in paths.items():
        where = f"{user} = {literal(sockets[user])}"
        above = next((parent for parent in path.parents if parent in users), None)
        if users[path] != user:
            yield f"{where}: {path} is that of {users[path]} already; each needs its own"
        elif above is not None:
            yield f"{where}: {above} can't be a directory, as it is the socket of {users[above]}"
        elif clients is not None and (path == clients or clients in path.parents):
            yield f"{where}: {clients} is the directory of the control socket's clients"
        elif len(str(path).encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH:
            yield f"{where}: {path} is longer than {MAX_SOCKET_PATH} bytes, the most there is"


def _device_faults(device: DeviceTable, rules: Sequence[Rule]) -> Iterator[str]:
    found = layouts(rules, device.name)
    if len(found) > 1:
        yield (
            "its host blobs would get both layouts, window and per-blob; make the policies for it "
            "agree (a blob that none matches gets window)"
        )
    elif found == {Layout.WINDOW}:
        if device.window > device.memory_limit:
            yield (
                f"memory_limit = {literal(size_text(device.memory_limit))}: must be window, "
                f"{literal(size_text(device.window))}, or more, as its guest can touch every "
                "page of that; or use the per-blob layout"
            )
        if device.buffers in (Buffers.UDMABUF, Buffers.GEM):
            yield (
                f'buffers = "{device.buffers}": must be "auto" or "memfd" with the window layout, '
                'which has room for no dma-bufs; or use layout = "per-blob"'
            )
        elif device.buffers is Buffers.AUTO and device.render_node:
            yield (
                f"render_node = {literal(device.render_node)}: of no effect with the window "
                'layout, which has room for no dma-bufs; use layout = "per-blob"'
            )
    if device.render_node and device.buffers in (Buffers.MEMFD, Buffers.UDMABUF):
        yield (
            f"render_node = {literal(device.render_node)}: of no effect with "
            f'buffers = "{device.buffers}"; use "gem" or "auto"'
        )


def _reaches_guest_ram(device: DeviceTable, rule: Rule) -> bool:
    return (
        device.slots is not SlotOwner.FRONTEND
        and rule.layout is Layout.PER_BLOB
        and rule.match.covers_device(device.name)
    )


_T = TypeVar("_T", bound=Table)


def _tables(model: type[_T], where: str, raw: Any, faults: list[str]) -> list[_T | None]:
    """Validate each table of an array on its own, so that one fault does not hide another."""
    if not isinstance(raw, list):
        faults.append(f"{where} = {literal(raw)}: must be tables, each under a {where} heading")
        return []
    parsed: list[_T | None] = []
    for number, table in enumerate(raw, start=1):
        heading = f"{where} {number}" if where.startswith("[[") else where
        try:
            parsed.append(model.model_validate(table))
        except ValidationError as error:
            if isinstance(table, dict):
                faults += [f"{heading}: {fault}" for fault in _faults(error, model)]
            else:
                faults.append(f"{heading} = {literal(table)}: must be a table")
            parsed.append(None)
    return parsed


def _faults(error: ValidationError, model: type[Table]) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        value = literal(fault["input"])
        words = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        match fault["type"]:
            case "extra_forbidden":
                table = MatchTable if key.startswith("match.") else model
                yield f"{key} = {value}: unknown key; known: {', '.join(table.model_fields)}"
            case "missing":
                about = field_docs(model).get(key, "").partition(".")[0]
                yield f"{key} is missing: {about[:1].lower()}{about[1:]}"
            case "model_type":
                yield f"{key} = {value}: must be a table"
            case kind:
                words = _WORDS.get(kind, words)
                yield f"{key} = {value}: {words}" if key else words


def schema() -> dict[str, Any]:
    """Return the JSON schema of a file."""
    return Config.model_json_schema(schema_generator=WithFieldDocs)


def default_toml() -> str:
    """Return the defaults as a commented file; loading it gives the defaults."""
    sections = [
        "\n\n".join(["[daemon]", *_spelled_out(DaemonTable)]),
        "\n\n".join(["[[device]]", *_spelled_out(DeviceTable, name="gpu0")]),
        "\n\n".join(["[[slot_policy]]", *_spelled_out(SlotPolicyTable)]),
    ]
    return "\n\n".join(sections) + "\n"


def _spelled_out(model: type[Table], **given: str) -> Iterator[str]:
    docs = field_docs(model)
    for key, field in model.model_fields.items():
        about = [f"# {line}" for line in docs[key].splitlines()]
        if field.annotation is MatchTable:
            about += [f"# - {sub}: {doc}" for sub, doc in field_docs(MatchTable).items()]
        if field.examples:  # The default follows from other things: show what it may look like.
            about.append(f"# {key} = {literal(field.examples[0])}")
        else:
            about.append(f"{key} = {literal(given.get(key, field.default))}")
        yield "\n".join(about)
