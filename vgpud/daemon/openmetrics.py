"""The daemon's metrics, with their names, as OpenMetrics text.

The counters are plain numbers where things happen; this module only formats them, without I/O.
prometheus_client takes a tenth of a second to import, so `render` imports it. Source: OpenMetrics
1.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.models import DeviceDetails
from vgpud.daemon.process_figures import ProcessFigures
from vgpud.gpu.counters import Counters
from vgpud.gpu.wire.command_codec import Command

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """A device's counters, its state, and its number of slots by owner."""

    counters: Counters
    device: DeviceDetails
    slots: Mapping[SlotOwner, int]


@dataclass(frozen=True, slots=True)
class WholeFigures:
    """The figures that devices have in common; `events` are numbers by kind."""

    events: Mapping[str, int]
    subscribers: int
    process: ProcessFigures


@dataclass(frozen=True, slots=True)
class Figures:
    """The daemon's figures; `uptime` is in seconds.

    `whole` is about the whole daemon: None for those who may observe a part of its devices only.
    """

    version: str
    uptime: float
    devices: tuple[DeviceFigures, ...]
    whole: WholeFigures | None


_COUNTERS: Final[tuple[tuple[str, str, str, Callable[[Counters], int]], ...]] = (
    ("vgpud_commands_refused", "Commands answered with an error", "", lambda c: c.refused),
    ("vgpud_fences", "Fences completed", "", lambda c: c.fences),
    ("vgpud_maps", "Blobs mapped into the guest", "", lambda c: c.maps),
    ("vgpud_unmaps", "Blobs unmapped from the guest", "", lambda c: c.unmaps),
    (
        "vgpud_dma_read_bytes",
        "Read by the DMA engine without snooping",
        "bytes",
        lambda c: c.bytes_read,
    ),
    (
        "vgpud_dma_written_bytes",
        "Written by the DMA engine without snooping",
        "bytes",
        lambda c: c.bytes_written,
    ),
    (
        "vgpud_dma_snooped_bytes",
        "Read and written by the DMA engine through the caches",
        "bytes",
        lambda c: c.bytes_snooped,
    ),
    ("vgpud_display_updates", "Updates sent to displays", "", lambda c: c.display_updates),
    ("vgpud_display_bytes", "Pixels sent to displays", "bytes", lambda c: c.display_bytes),
    ("vgpud_sessions", "Front-ends that have connected", "", lambda c: c.sessions),
    ("vgpud_resets", "Resets by guests", "", lambda c: c.resets),
)
_GAUGES: Final[tuple[tuple[str, str, str, Callable[[DeviceDetails], int]], ...]] = (
    ("vgpud_device_connected", "Whether a front-end is connected", "", lambda d: d.connected),
    (
        "vgpud_device_display",
        "Whether a VMM's display is attached",
        "",
        lambda d: d.display,
    ),
    (
        "vgpud_device_agent",
        "Whether a slot agent is attached",
        "",
        lambda d: d.agent is not None,
    ),
    (
        "vgpud_memory_used_bytes",
        "Memory that the guest has had allocated",
        "bytes",
        lambda d: d.memory_used,
    ),
    (
        "vgpud_memory_limit_bytes",
        "Memory that the guest can have allocated",
        "bytes",
        lambda d: d.memory_limit,
    ),
    ("vgpud_resources", "Resources, blobs among them", "", lambda d: d.resources),
    ("vgpud_blobs", "Blob resources", "", lambda d: d.blobs),
    ("vgpud_contexts", "Contexts", "", lambda d: d.contexts),
)
_END: Final = "# EOF\n"
_AT_ONCE: Final = 4
"""Devices of which one step formats a metric: it takes a tenth of a millisecond."""
_WORD_START: Final = re.compile(r"(?<=[a-z])(?=[A-Z0-9])")


class _Collected:
    """A registry, as prometheus_client expects it."""

    def __init__(self, metrics: Iterator[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics


def render(figures: Figures) -> Generator[None, None, str]:
    """Return all metrics as text that ends with `# EOF`, after many short steps (`vgpud.pace`)."""
    from prometheus_client.openmetrics.exposition import generate_latest  # noqa: PLC0415 - above

    texts: list[str] = []
    name = ""
    for metric in _metrics(figures):
        text: bytes = generate_latest(_Collected(iter([metric])))
        lines = text.decode().removesuffix(_END).splitlines(keepends=True)
        if metric.name == name:  # a further part has the head again
            lines = [line for line in lines if not line.startswith("#")]
        name = metric.name
        texts += lines
        yield
    return "".join([*texts, _END])


def command_name(kind: type[Command]) -> str:
    """Return a command's label: `resource_create_2d` for ResourceCreate2D."""
    return _WORD_START.sub("_", kind.__name__).lower()


def _metrics(figures: Figures) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - above
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )

    yield InfoMetricFamily("vgpud", "The daemon", value={"version": figures.version})
    yield GaugeMetricFamily(
        "vgpud_uptime_seconds", "Time since the start", value=figures.uptime, unit="seconds"
    )
    parts = [*_parts(figures.devices)]
    for part in parts:
        commands = CounterMetricFamily(
            "vgpud_commands", "Commands of guests, by name", labels=["device", "command"]
        )
        for one in part:
            named = {command_name(kind): count for kind, count in one.counters.commands.items()}
            for name, count in sorted(named.items()):
                commands.add_metric([one.device.name, name], count)
        yield commands
    for name, about, unit, counted in _COUNTERS:
        for part in parts:
            counter = CounterMetricFamily(name, about, labels=["device"], unit=unit)
            for one in part:
                counter.add_metric([one.device.name], counted(one.counters))
            yield counter
    for name, about, unit, seen in _GAUGES:
        for part in parts:
            gauge = GaugeMetricFamily(name, about, labels=["device"], unit=unit)
            for one in part:
                gauge.add_metric([one.device.name], seen(one.device))
            yield gauge
    for part in parts:
        slots = GaugeMetricFamily(
            "vgpud_slots", "Mappings into guests, by slot owner", labels=["device", "owner"]
        )
        for one in part:
            for owner, count in sorted(one.slots.items()):
                slots.add_metric([one.device.name, owner], count)
        yield slots
    if figures.whole is not None:
        yield from _whole(figures.whole)


def _parts(devices: Sequence[DeviceFigures]) -> Iterator[Sequence[DeviceFigures]]:
    """Yield some devices at a time; no devices are one part."""
    for start in range(0, max(len(devices), 1), _AT_ONCE):
        yield devices[start : start + _AT_ONCE]


def _whole(whole: WholeFigures) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - above
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    events = CounterMetricFamily("vgpud_events", "Events, by kind", labels=["kind"])
    for kind, count in sorted(whole.events.items()):
        events.add_metric([kind], count)
    yield events
    yield GaugeMetricFamily("vgpud_subscribers", "Clients that get events", value=whole.subscribers)
    yield from _process(whole.process)


def _process(process: ProcessFigures) -> Iterator[Metric]:
    """Yield the process's metrics, with the names that are usual for all programs."""
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - above
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    yield CounterMetricFamily(
        "process_cpu_seconds",
        "Processor time, user and system",
        value=process.cpu_seconds,
        unit="seconds",
    )
    if process.resident_bytes is not None:
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory in use",
            value=process.resident_bytes,
            unit="bytes",
        )
    if process.open_fds is not None:
        yield GaugeMetricFamily("process_open_fds", "Descriptors in use", value=process.open_fds)
    yield GaugeMetricFamily(
        "process_max_fds", "Descriptors that may be in use", value=process.max_fds
    )
