"""The daemon's figures as OpenMetrics text, read back by prometheus_client's strict parser."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.cli.ctl import answers
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.daemon import openmetrics
from vgpud.daemon.openmetrics import DeviceFigures, Figures, WholeFigures
from vgpud.daemon.process_figures import ProcessFigures
from vgpud.gpu.counters import Counters
from vgpud.gpu.wire import commands

Labels = tuple[tuple[str, str], ...]
ONE: Labels = (("device", "one"),)


def counters() -> Counters:
    """Every total is another number."""
    return Counters(
        commands={commands.ResourceCreate2D: 5, commands.Submit3D: 3},
        refused=1,
        fences=2,
        maps=30,
        unmaps=4,
        bytes_read=123_456_789_012,
        bytes_written=6,
        bytes_snooped=7,
        display_updates=8,
        display_bytes=9,
        sessions=10,
        resets=11,
    )


def figures(**changes: object) -> Figures:
    """Two devices: one at work, and one without a front-end."""
    idle = answers.device(
        "two", connected=False, front_end_pid=None, memory_used=0, resources=0, blobs=0, contexts=0
    )
    values: dict[str, object] = {
        "version": "0.1.0",
        "uptime": 12.5,
        "devices": (
            DeviceFigures(counters(), answers.device("one"), {SlotOwner.FRONTEND: 1}),
            DeviceFigures(Counters(), idle, {}),
        ),
        "whole": WholeFigures({"device.added": 2}, 3, ProcessFigures(1.5, 4096, 17, 1024)),
    }
    return Figures(**(values | changes))  # type: ignore[arg-type]


def whole(of: Figures) -> str:
    """The text, after all its steps."""
    steps = openmetrics.render(of)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            text: str = end.value
            return text


def read(text: str) -> dict[tuple[str, Labels], float]:
    """All samples; raises ValueError for what is no OpenMetrics."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_is_there() -> None:
    found = read(whole(figures()))
    assert found[("vgpud_info", (("version", "0.1.0"),))] == 1
    assert found[("vgpud_uptime_seconds", ())] == 12.5
    assert found[("vgpud_commands_total", (("command", "resource_create_2d"), *ONE))] == 5
    assert found[("vgpud_commands_total", (("command", "submit_3d"), *ONE))] == 3
    assert {name: value for (name, labels), value in found.items() if labels == ONE} == {
        "vgpud_commands_refused_total": 1,
        "vgpud_fences_total": 2,
        "vgpud_maps_total": 30,
        "vgpud_unmaps_total": 4,
        "vgpud_dma_read_bytes_total": 123_456_789_012,
        "vgpud_dma_written_bytes_total": 6,
        "vgpud_dma_snooped_bytes_total": 7,
        "vgpud_display_updates_total": 8,
        "vgpud_display_bytes_total": 9,
        "vgpud_sessions_total": 10,
        "vgpud_resets_total": 11,
        "vgpud_device_connected": 1,
        "vgpud_device_display": 0,
        "vgpud_device_agent": 0,
        "vgpud_memory_used_bytes": 12 << 20,
        "vgpud_memory_limit_bytes": 1 << 30,
        "vgpud_resources": 7,
        "vgpud_blobs": 3,
        "vgpud_contexts": 1,
    }
    assert found[("vgpud_slots", (*ONE, ("owner", "frontend")))] == 1
    assert found[("vgpud_events_total", (("kind", "device.added"),))] == 2
    assert found[("vgpud_subscribers", ())] == 3
    assert found[("vgpud_device_connected", (("device", "two"),))] == 0
    assert found[("process_cpu_seconds_total", ())] == 1.5
    assert found[("process_resident_memory_bytes", ())] == 4096
    assert found[("process_open_fds", ())] == 17
    assert found[("process_max_fds", ())] == 1024


def test_a_daemon_without_devices_that_sees_no_proc() -> None:
    process = ProcessFigures(0.0, None, None, float("inf"))
    found = read(whole(figures(devices=(), whole=WholeFigures({}, 3, process))))
    assert {name for name, _ in found} == {
        "vgpud_info",
        "vgpud_uptime_seconds",
        "vgpud_subscribers",
        "process_cpu_seconds_total",
        "process_max_fds",
    }
    assert found[("process_max_fds", ())] == float("inf")


def test_of_the_whole_daemon_there_is_nothing_for_those_who_observe_a_part() -> None:
    names = {name for name, _ in read(whole(figures(whole=None)))}
    assert "vgpud_fences_total" in names
    assert not [name for name in names if name.startswith(("process_", "vgpud_events"))]
    assert "vgpud_subscribers" not in names


@pytest.mark.parametrize("count", [3, 4, 5, 60])
def test_many_devices_are_formatted_in_steps_and_read_as_one(count: int) -> None:
    devices = tuple(
        DeviceFigures(counters(), answers.device(f"gpu{number}"), {SlotOwner.AGENT: number})
        for number in range(count)
    )
    steps = openmetrics.render(figures(devices=devices))
    assert sum(1 for _ in steps) > 20 * count / 4
    text = whole(figures(devices=devices))
    assert text.count("# TYPE vgpud_fences ") == 1
    found = read(text)
    for number in range(count):
        labels = (("device", f"gpu{number}"),)
        assert found[("vgpud_fences_total", labels)] == 2
        assert found[("vgpud_commands_total", (("command", "submit_3d"), *labels))] == 3
        assert found[("vgpud_slots", (*labels, ("owner", "agent")))] == number


def test_the_text_is_what_its_content_type_says() -> None:
    assert openmetrics.CONTENT_TYPE == CONTENT_TYPE_LATEST
    assert whole(figures()).endswith("# EOF\n")


@pytest.mark.parametrize(
    ("class_name", "label"),
    [
        ("GetDisplayInfo", "get_display_info"),
        ("ResourceCreate2D", "resource_create_2d"),
        ("TransferToHost3D", "transfer_to_host_3d"),
        ("CtxAttachResource", "ctx_attach_resource"),
        ("Submit3D", "submit_3d"),
    ],
)
def test_commands_have_the_names_of_the_specification(class_name: str, label: str) -> None:
    assert openmetrics.command_name(getattr(commands, class_name)) == label
