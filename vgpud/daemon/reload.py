"""The difference between two configurations: what can change at once, and what needs a restart.

`difference` is a pure function; `daemon.reloader` applies its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vgpud.coherency.slot_policy import Match, Rule
from vgpud.daemon.config import Config
from vgpud.daemon.config_tables import DaemonTable, Effect, Table, on_reload, size_text
from vgpud.gpu.spec import DeviceSpec, PreferredMode

_T = TypeVar("_T", bound=Table)

_MAX_TEXT = 160
"""Characters of a value in a line: all lines have to fit into one answer of the control socket."""


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """The changes to apply, and a line about each.

    `config` is the configuration in force afterwards: the new one, but with the old values of what
    needs a restart. `changed` are the devices that stay and have another specification.
    """

    config: Config
    added: tuple[DeviceSpec, ...]
    removed: tuple[str, ...]
    changed: tuple[DeviceSpec, ...]
    applied: tuple[str, ...]
    next_connection: tuple[str, ...]
    restart: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """All differences, for the log."""
        return (
            *self.applied,
            *(f"{line} (at the next connection)" for line in self.next_connection),
            *(f"{line} (after a restart)" for line in self.restart),
        )


def difference(running: Config, wanted: Config, *, log_level: str | None = None) -> ConfigChanges:
    """Return what to do for `wanted` where `running` is in force; `log_level` overrides both's.

    Raises ConfigError if a value that stays until a restart contradicts a new one.
    """
    config = _until_restart(running, wanted)
    old = {spec.name: spec for spec in running.device_specs()}
    new = {spec.name: spec for spec in config.device_specs()}
    lines: dict[Effect, list[str]] = {effect: [] for effect in Effect}
    for effect, line in _daemon_lines(running.daemon, wanted.daemon, log_level):
        lines[effect].append(f"daemon: {line}")
    lines[Effect.AT_ONCE] += (f"device {name}: removed" for name in old if name not in new)
    lines[Effect.AT_ONCE] += (f"device {name}: added" for name in new if name not in old)
    tables = {table.name: table for table in running.device}
    for table in wanted.device:
        if (before := tables.get(table.name)) is not None:
            changed = [*_lines(before, table), *_policies(old[table.name], new[table.name])]
            for effect, line in changed:
                lines[effect].append(f"device {table.name}: {line}")
    return ConfigChanges(
        config=config,
        added=tuple(spec for name, spec in new.items() if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(spec for name, spec in new.items() if name in old and spec != old[name]),
        applied=tuple(lines[Effect.AT_ONCE]),
        next_connection=tuple(lines[Effect.NEXT_CONNECTION]),
        restart=tuple(lines[Effect.RESTART]),
    )


def _until_restart(running: Config, wanted: Config) -> Config:
    """Return `wanted`, but with the old values of what takes a restart."""
    tables = {table.name: table for table in running.device}
    daemon = _with_old(running.daemon, wanted.daemon)
    devices = tuple(_with_old(tables.get(table.name, table), table) for table in wanted.device)
    config = wanted.model_copy(update={"daemon": daemon, "device": devices})
    config.check()
    return config


def _with_old(old: _T, new: _T) -> _T:
    kept = [key for key, means in on_reload(type(new)).items() if means.effect is Effect.RESTART]
    return new.model_copy(update={key: getattr(old, key) for key in kept})


def _daemon_lines(
    old: DaemonTable, new: DaemonTable, log_level: str | None
) -> Iterator[tuple[Effect, str]]:
    for effect, line in _lines(old, new):
        if line.startswith("log_level ") and log_level is not None:
            yield Effect.RESTART, f"{line}, overridden by --log-level {log_level}"
        else:
            yield effect, line


def _lines(old: Table, new: Table) -> Iterator[tuple[Effect, str]]:
    """Say what is different in a table, and when it takes effect."""
    for key, means in on_reload(type(new)).items():
        before, after = (getattr(table, means.shown_as or key) for table in (old, new))
        if before != after and (means.ordered or set(before) != set(after)):
            effect = means.effect
            if means.resized is not None and len(before) != len(after):
                effect = means.resized
            yield effect, f"{key} {_text(before)} -> {_text(after)}"


def _policies(old: DeviceSpec, new: DeviceSpec) -> Iterator[tuple[Effect, str]]:
    """Say what is different in a device's slot policies, and when it takes effect."""
    if old.rules != new.rules:
        before, after = _without_common(old.rules, new.rules)
        yield Effect.AT_ONCE, f"slot_policy {_rules(before)} -> {_rules(after)}"
    if old.layout != new.layout:
        yield Effect.NEXT_CONNECTION, f"layout {old.layout} -> {new.layout}"


def _without_common(
    old: Sequence[Rule], new: Sequence[Rule]
) -> tuple[Sequence[Rule], Sequence[Rule]]:
    """Return both without the rules that both begin with, and those that both end with."""
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return old, new


def _rules(rules: Sequence[Rule]) -> str:
    return _cut(f"[{', '.join(map(_rule, rules))}]") if rules else "none"


def _rule(rule: Rule) -> str:
    match = rule.match
    limits = []
    if match.device != Match().device:
        limits.append(match.device)
    if match.blob is not None:
        limits.append(str(match.blob))
    if match.min_size:
        limits.append(f">={size_text(match.min_size)}")
    if match.max_size is not None:
        limits.append(f"<={size_text(match.max_size)}")
    words = [f"{' '.join(limits) or 'all'}:", rule.memory_type, rule.fallback, rule.layout]
    return " ".join([*words, "allow_guest_ram"] if rule.allow_guest_ram else words)


def _text(value: object) -> str:
    match value:
        case (PreferredMode(), *_):
            modes = [
                f"{mode.width}x{mode.height}" for mode in value if isinstance(mode, PreferredMode)
            ]
            return f"[{', '.join(modes)}]"
        case tuple():
            return _cut(f"[{', '.join(value)}]")
        case int():  # all numbers of the tables are sizes
            return size_text(value)
        case _:
            return str(value or "none")


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
