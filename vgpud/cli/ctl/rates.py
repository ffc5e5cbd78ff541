"""Rates per second, from two snapshots of the daemon's metrics.

OpenMetrics text is parsed with prometheus_client, which is slow to import, so functions import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vgpud.cli.ctl.tables import NOTHING, number, size, table
from vgpud.errors import PeerError

COUNTERS: Final[dict[str, str]] = {
    "commands": "vgpud_commands_total",
    "bytes_read": "vgpud_dma_read_bytes_total",
    "bytes_written": "vgpud_dma_written_bytes_total",
    "bytes_snooped": "vgpud_dma_snooped_bytes_total",
    "maps": "vgpud_maps_total",
    "fences": "vgpud_fences_total",
    "frames": "vgpud_display_updates_total",
}
"""The figures that are shown, and the metric whose samples each sums up."""

_GAUGES: Final[dict[str, str]] = {
    "connected": "vgpud_device_connected",
    "memory_used": "vgpud_memory_used_bytes",
    "memory_limit": "vgpud_memory_limit_bytes",
}
_BYTES: Final = {"bytes_read", "bytes_written", "bytes_snooped"}


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Totals and states by device, `uptime` seconds after the daemon's start."""

    uptime: float
    devices: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """A device's state, and its `rates` per second by the names of COUNTERS."""

    device: str
    connected: bool
    memory_used: int
    memory_limit: int
    rates: dict[str, float]


def samples(text: str) -> Iterator[Sample]:
    """Yield all values in OpenMetrics text; raises PeerError if the text is not OpenMetrics."""
    from prometheus_client.openmetrics.parser import (  # noqa: PLC0415 - see above
        text_string_to_metric_families,
    )

    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield Sample(sample.name, dict(sample.labels), sample.value)
    except ValueError as error:
        raise PeerError(f"metrics.get: not OpenMetrics: {error}") from error


def snapshot(text: str) -> Snapshot:
    """Return the totals and states of all devices in the daemon's metrics."""
    wanted = {name: key for key, name in (COUNTERS | _GAUGES).items()}
    devices: dict[str, dict[str, float]] = {}
    uptime = 0.0
    for sample in samples(text):
        if sample.name == "vgpud_uptime_seconds":
            uptime = sample.value
        if (device := sample.labels.get("device")) is not None and sample.name in wanted:
            values = devices.setdefault(device, {})
            key = wanted[sample.name]
            values[key] = values.get(key, 0.0) + sample.value
    return Snapshot(uptime, devices)


def rates(before: Snapshot | None, after: Snapshot) -> list[DeviceRates]:
    """Return the rates between two snapshots.

    They are zero without a first snapshot, and for a device that is not in it.
    """
    if before is None or before.uptime > after.uptime:  # the daemon was restarted
        before = after
    elapsed = after.uptime - before.uptime
    return [
        DeviceRates(
            device,
            bool(values.get("connected")),
            int(values.get("memory_used", 0)),
            int(values.get("memory_limit", 0)),
            {
                key: _rate(before.devices.get(device, values), values, key, elapsed)
                for key in COUNTERS
            },
        )
        for device, values in after.devices.items()
    ]


def lines(found: list[DeviceRates]) -> Iterator[str]:
    """Return a table with a line for each device."""
    return table(
        (
            *("DEVICE", "VMM", ">COMMANDS/S", ">READ/S", ">WRITTEN/S", ">SNOOPED/S"),
            *(">MAPS/S", ">FENCES/S", ">FRAMES/S", "MEMORY"),
        ),
        (
            (
                row.device,
                "connected" if row.connected else NOTHING,
                *(size(rate) if key in _BYTES else number(rate) for key, rate in row.rates.items()),
                f"{size(row.memory_used)} of {size(row.memory_limit)}",
            )
            for row in found
        ),
    )


def _rate(before: dict[str, float], after: dict[str, float], key: str, elapsed: float) -> float:
    counted = after.get(key, 0.0) - before.get(key, 0.0)
    # A counter that fell belongs to a device that was removed and added: it counts from zero.
    return max(counted, 0.0) / elapsed if elapsed > 0 else 0.0
