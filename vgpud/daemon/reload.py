"""What it takes to get from one configuration to another: what can change live, and what can not.

Pure: a comparison of two configurations, and its wording. The daemon does what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vgpud.coherency.slot_policy import Match, Rule
from vgpud.daemon.config import Config
from vgpud.daemon.config_tables import DeviceTable, size_text
from vgpud.gpu.spec import DeviceSpec, Output

_MAX_WORDS = 160
"""Characters of a value in a line: all lines have to fit into one answer of the control socket."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be done, and said.

    `config` is what holds from then on: the new one, but with the old values of what takes a
    restart. `changed` are the devices that stay, with something else in their specification.
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
        """Everything that is different, for a log."""
        return (
            *self.applied,
            *(f"{line} (at the next connection)" for line in self.next_connection),
            *(f"{line} (after a restart)" for line in self.restart),
        )


def difference(running: Config, wanted: Config, *, log_level: str | None = None) -> Changes:
    """What to do for `wanted` where `running` is in force; `log_level` is one that overrides both.

    Raises ConfigError if what stays as it is until a restart contradicts what is new.
    """
    old = {spec.name: spec for spec in running.device_specs()}
    config = _until_restart(running, wanted)
    new = {spec.name: spec for spec in config.device_specs()}
    applied, later, restart = list[str](), list[str](), list[str]()
    for line, at_once in _daemon_lines(running, wanted, log_level):
        (applied if at_once else restart).append(line)
    applied += (f"device {name}: removed" for name in old if name not in new)
    applied += (f"device {name}: added" for name in new if name not in old)
    for name, spec in new.items():
        if (before := old.get(name)) is not None:
            applied += (f"device {name}: {line}" for line in _live(before, spec))
            later += (f"device {name}: {line}" for line in _next_connection(before, spec))
    restart += _sockets(running, wanted)
    return Changes(
        config=config,
        added=tuple(spec for name, spec in new.items() if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(spec for name, spec in new.items() if name in old and spec != old[name]),
        applied=tuple(applied),
        next_connection=tuple(later),
        restart=tuple(restart),
    )


def _until_restart(running: Config, wanted: Config) -> Config:
    """`wanted`, but with every socket that is open where it is."""
    daemon = wanted.daemon.model_copy(
        update={
            "runtime_dir": running.daemon.runtime_dir,
            "control_socket": running.daemon.control_socket,
        }
    )
    sockets = {table.name: table.socket for table in running.device}
    devices = tuple(
        table.model_copy(update={"socket": sockets.get(table.name, table.socket)})
        for table in wanted.device
    )
    config = wanted.model_copy(update={"daemon": daemon, "device": devices})
    config.check()
    return config


def _daemon_lines(
    running: Config, wanted: Config, log_level: str | None
) -> Iterator[tuple[str, bool]]:
    """What is different in the daemon's table, and whether it takes effect at once."""
    old, new = running.daemon, wanted.daemon
    for key in ("allow_users", "allow_groups"):
        before, after = getattr(old, key), getattr(new, key)
        if set(before) != set(after):
            yield f"daemon: {key} {_names(before)} -> {_names(after)}", True
    if old.log_level != new.log_level:
        line = f"daemon: log_level {old.log_level} -> {new.log_level}"
        if log_level is None:
            yield line, True
        else:
            yield f"{line}, overridden by --log-level {log_level}", False
    for key in ("runtime_dir", "control_socket"):
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            yield f"daemon: {key} {before or 'none'} -> {after or 'none'}", False


def _live(old: DeviceSpec, new: DeviceSpec) -> Iterator[str]:
    if old.memory_limit != new.memory_limit:
        yield f"memory_limit {size_text(old.memory_limit)} -> {size_text(new.memory_limit)}"
    if old.guest_pat != new.guest_pat:
        yield f"guest_pat {old.guest_pat} -> {new.guest_pat}"
    if old.outputs != new.outputs and len(old.outputs) == len(new.outputs):
        yield f"outputs {_outputs(old.outputs)} -> {_outputs(new.outputs)}"
    if old.rules != new.rules:
        before, after = _apart(old.rules, new.rules)
        yield f"slot_policy {_rules(before)} -> {_rules(after)}"


def _next_connection(old: DeviceSpec, new: DeviceSpec) -> Iterator[str]:
    if old.window != new.window:
        yield f"window {size_text(old.window)} -> {size_text(new.window)}"
    for key in ("layout", "buffers", "render_node", "slots"):
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            yield f"{key} {before or 'none'} -> {after or 'none'}"
    if old.renderers != new.renderers:
        yield f"renderers {_names(old.renderers)} -> {_names(new.renderers)}"
    if len(old.outputs) != len(new.outputs):
        yield f"outputs {_outputs(old.outputs)} -> {_outputs(new.outputs)}"


def _sockets(running: Config, wanted: Config) -> Iterator[str]:
    """Devices that are to be somewhere else, and not only because all of them are."""
    old: dict[str, DeviceTable] = {table.name: table for table in running.device}
    for table in wanted.device:
        before = old.get(table.name, table)
        if before.socket_name != table.socket_name:
            yield f"device {table.name}: socket {before.socket_name} -> {table.socket_name}"


def _apart(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[Sequence[Rule], Sequence[Rule]]:
    """The same without the rules that both begin with, and those that both end with."""
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return old, new


def _rules(rules: Sequence[Rule]) -> str:
    text = f"[{', '.join(map(_rule, rules))}]" if rules else "none"
    return text if len(text) <= _MAX_WORDS else f"{text[: _MAX_WORDS - 3]}..."


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


def _outputs(outputs: Sequence[Output]) -> str:
    return f"[{', '.join(f'{output.width}x{output.height}' for output in outputs)}]"


def _names(names: Sequence[str]) -> str:
    text = f"[{', '.join(names)}]"
    return text if len(text) <= _MAX_WORDS else f"{text[: _MAX_WORDS - 3]}..."
