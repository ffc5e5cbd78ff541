"""What is valid in a configuration, but is not likely to be meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vgpud.coherency.slot_policy import Layout, Rule, SlotOwner, layouts
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.daemon.config_tables import (
    DaemonTable,
    DeviceTable,
    SlotPolicyTable,
    size_text,
)
from vgpud.daemon.toml_literal import literal
from vgpud.gpu.spec import FRAMES_A_PICTURE, picture_memory
from vgpud.unix.accounts import group_id, user_id


def found(
    daemon: DaemonTable, devices: Sequence[DeviceTable], policies: Sequence[SlotPolicyTable]
) -> Iterator[str]:
    """Yield a sentence for each pair of keys that don't go together."""
    rules = [policy.rule() for policy in policies]
    for number, device in enumerate(devices, start=1):
        for warning in (*_limits(device, rules), *_grants(device), *_agent(daemon, device)):
            yield f"[[device]] {number}: {warning} (device {device.name})"
    for number, policy in enumerate(policies, start=1):
        pattern = policy.match.device
        if not any(policy.rule().match.covers_device(device.name) for device in devices):
            yield (
                f"[[slot_policy]] {number}: match.device = {literal(pattern)}: matches the name of"
                " no [[device]], so that the policy has no effect"
            )


def found_on_this_host(
    rules: Iterable[AccessRule], devices: Iterable[DeviceTable]
) -> Iterator[str]:
    """Yield a sentence for each user and group that this host does not know."""
    for rule in rules:
        for key, name in _unknown(rule):
            yield f"{rule.table}: {key}: {name}: unknown to this system, which ignores it then"
    for device in devices:
        group = device.socket_group
        if group is not None and group_id(group) is None:
            yield (
                f"[[device]] {device.name}: socket_group: {group}: unknown to this system, where"
                " the daemon does not start then, unless systemd opens the socket"
            )


def _unknown(rule: AccessRule) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each user and group of a rule that the system does not know."""
    for kind, names, look_up in (("users", rule.users, user_id), ("groups", rule.groups, group_id)):
        for name in names:
            if look_up(name) is None:
                yield f"{rule.prefix}_{kind}", name


def _limits(device: DeviceTable, rules: Sequence[Rule]) -> Iterator[str]:
    window = device.window if layouts(rules, device.name) == {Layout.WINDOW} else 0
    needed = window + picture_memory(device.outputs)
    if needed >= device.memory_limit:
        modes = ", ".join(f"{mode.width}x{mode.height}" for mode in device.outputs)
        enough = literal(f"{(needed >> 20) + 1}MiB")
        beside = f"its window, {size_text(window)}, and " if window else ""
        yield (
            f"memory_limit = {literal(size_text(device.memory_limit))}: is no more than {beside}"
            f"{FRAMES_A_PICTURE} frames of each output ({modes}), which a guest is charged for;"
            f" where memory is refused, frames are lost: set {enough} or more, or smaller outputs"
        )


def _grants(device: DeviceTable) -> Iterator[str]:
    named = device.allow_users or device.allow_groups
    if named and not device.grants:
        yield "grants = []: allow_users and allow_groups may do nothing then"
    elif not named and {*device.grants} != {*AccessGrant}:
        grants = literal([str(grant) for grant in device.grants])
        yield f"grants = {grants}: of no effect without allow_users or allow_groups"


def _agent(daemon: DaemonTable, device: DeviceTable) -> Iterator[str]:
    if device.slots is not SlotOwner.AGENT:
        return
    if not daemon.control_socket:
        yield (
            'slots = "agent": no agent can attach, as control_socket is "", except with --agent-fd'
            " of vhost-user-vgpu"
        )
    elif (device.allow_users or device.allow_groups) and (
        device.grants and AccessGrant.MEMORY not in device.grants
    ):
        yield (
            'slots = "agent": allow_users and allow_groups can\'t be its agent, as grants has no'
            ' "memory"'
        )
