"""The daemon's answers as lines of text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from vgpud.cli.ctl.tables import NOTHING, address, size, span, table
from vgpud.control.models import (
    Agent,
    Blob,
    DaemonInfo,
    DeviceDetails,
    Event,
    Output,
    Reloaded,
    Resized,
    Screenshot,
    Slot,
)
from vgpud.printable import printable
from vgpud.publish import Json

_ADDRESSES: Final = {"flags", "fd_offset", "guest_phys_addr", "offset"}
"""The keys of events' data whose numbers are shown in hexadecimal."""


def status(info: DaemonInfo, found: Sequence[DeviceDetails]) -> Iterator[str]:
    """Return lines about the daemon, its devices, and notes about them."""
    yield (
        f"vgpud {printable(info.version)}, pid {info.pid}, up {span(info.uptime_s)},"
        f" log level {printable(info.log_level)}"
    )
    yield f"configuration: {printable(info.config_file or 'built-in defaults')}"
    yield ""
    yield from devices(found)
    notes = [f"{device.name}: {note}" for device in found for note in _notes(device)]
    if notes:
        yield ""
        yield from map(printable, notes)


def devices(found: Sequence[DeviceDetails]) -> Iterator[str]:
    """Return a table with a line for each device."""
    return table(
        (
            *("DEVICE", "VMM", "MEMORY", ">BLOBS", ">RESOURCES"),
            *("LAYOUT", "BUFFERS", "SLOTS", "GUEST PAT", "OUTPUTS"),
        ),
        (
            (
                device.name,
                _vmm(device),
                f"{size(device.memory_used)} of {size(device.memory_limit)}",
                str(device.blobs),
                str(device.resources),
                device.layout,
                device.buffers,
                device.slots,
                device.kvm_mode or device.guest_pat,
                ", ".join(f"{output.width}x{output.height}" for output in device.outputs),
            )
            for device in found
        ),
    )


def device(found: DeviceDetails) -> Iterator[str]:
    """Return all facts about one device, a line for each."""
    rows = [
        ("device", found.name),
        ("socket", found.socket or "none: it was given its connection"),
        ("VMM", f"{_vmm(found)}{', with a display' if found.display else ''}"),
        ("memory", f"{size(found.memory_used)} of {size(found.memory_limit)}"),
        ("window", f"{size(found.window)}, layout {found.layout}"),
        ("buffers", found.buffers),
        ("render node", found.render_node or NOTHING),
        ("renderers", ", ".join(found.renderers) or NOTHING),
        ("slots", found.slots),
        ("guest PAT", _guest_pat(found)),
        ("resources", f"{found.resources}, of them blobs {found.blobs}"),
        ("contexts", str(found.contexts)),
        *((f"output {output.scanout}", _output(output)) for output in found.outputs),
        *([("agent", _agent(found.agent))] if found.agent else []),
        *(("problem", problem) for problem in found.problems),
    ]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        yield f"{label:{width}}  {printable(value)}"


def blobs(found: Sequence[Blob]) -> Iterator[str]:
    """Return a table with a line for each blob."""
    return table(
        ("DEVICE", ">BLOB", "OF", "KIND", ">SIZE", "IN BAR", "ADDRESS", "TYPE", "FLAGS", "REASON"),
        (
            (
                blob.device,
                f"{blob.blob:#x}" if blob.origin == "vmm" else str(blob.blob),
                blob.origin,
                blob.kind,
                size(blob.size),
                address(blob.offset),
                address(blob.guest_phys_addr),
                blob.map_info or NOTHING,
                address(blob.flags),
                blob.reason or "",
            )
            for blob in found
        ),
    )


def slots(found: Sequence[Slot]) -> Iterator[str]:
    """Return a table with a line for each mapping."""
    return table(
        ("DEVICE", "SET BY", ">SLOT", "USE", ">SIZE", "IN BAR", "ADDRESS", "FLAGS"),
        (
            (
                slot.device,
                slot.owner,
                NOTHING if slot.slot is None else str(slot.slot),
                slot.use,
                size(slot.memory_size),
                address(slot.bar_offset),
                address(slot.guest_phys_addr),
                address(slot.flags),
            )
            for slot in found
        ),
    )


def event(happened: Event) -> str:
    """Return an event as one line: time, kind, device, message and data."""
    when = datetime.fromtimestamp(happened.time).astimezone()
    parts = [f"{when:%H:%M:%S}.{when.microsecond // 1000:03}", happened.kind]
    if happened.device is not None:
        parts.append(happened.device)
    if happened.resource is not None:
        parts.append(f"resource {happened.resource}")
    parts.append(happened.message)
    parts += [f"{key}={_fact(key, value)}" for key, value in happened.data.items()]
    return printable(" ".join(parts))


def reloaded(result: Reloaded) -> Iterator[str]:
    """Return lines about each change, grouped by when it takes effect."""
    groups = (
        ("applied", result.applied),
        ("when the device's VMM connects again", result.next_connection),
        ("after a restart of the daemon", result.restart),
    )
    if not any(changes for _, changes in groups):
        yield "nothing has changed"
    for heading, changes in groups:
        if changes:
            yield f"{heading}:"
            yield from (f"  {printable(change)}" for change in changes)


def resized(result: Resized) -> str:
    """Return a line about the new mode."""
    where = f"{printable(result.device)} output {result.scanout}"
    return f"{where}: offered {result.width}x{result.height}"


def screenshot(result: Screenshot, file: str) -> str:
    """Return a line about the picture and its file."""
    return (
        f"{printable(result.device)} output {result.scanout}: {result.width}x{result.height},"
        f" {size(result.size)} in {printable(file)}"
    )


def _fact(key: str, value: Json) -> str:
    # In the format of tables.
    return address(value) if key in _ADDRESSES and isinstance(value, int) else str(value)


def _notes(found: DeviceDetails) -> Iterator[str]:
    if found.kvm_reason:
        yield f"guest PAT: {_guest_pat(found)}"
    if found.agent:
        yield f"agent: {_agent(found.agent)}"
    yield from found.problems


def _vmm(found: DeviceDetails) -> str:
    if not found.connected:
        return NOTHING
    return f"pid {found.front_end_pid}" if found.front_end_pid else "connected"


def _guest_pat(found: DeviceDetails) -> str:
    if found.kvm_mode is None:
        return found.guest_pat
    reason = f": {found.kvm_reason}" if found.kvm_reason else ""
    return f"{found.guest_pat}, {found.kvm_mode}{reason}"


def _output(output: Output) -> str:
    showing = "off" if output.showing is None else "shows {}x{}".format(*output.showing)
    return f"{output.width}x{output.height}, {showing}"


def _agent(agent: Agent) -> str:
    pid = f"pid {agent.pid}" if agent.pid else "connected"
    last = agent.first_slot + agent.slot_count - 1
    where = "nowhere" if agent.guest_phys_addr is None else f"at {agent.guest_phys_addr:#x}"
    accepted = {True: "accepted", False: "refused", None: "not tried"}[agent.flag_accepted]
    return (
        f"{pid}, slots {agent.first_slot} to {last}, window {where},"
        f" flags {agent.flags:#x} ({accepted}), {agent.kvm_mode}: {agent.reason}"
    )
