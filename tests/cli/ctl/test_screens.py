"""The daemon's answers as text for people."""

from __future__ import annotations

import re

import pytest

from tests.cli.ctl import answers
from vgpud.cli.ctl import screens
from vgpud.control import models


def cells(line: str) -> list[str]:
    """The columns of a line."""
    return re.split(r" {2,}", line.strip())


def test_status_is_the_daemon_its_devices_and_what_is_wrong() -> None:
    found = [
        answers.device(),
        answers.device(
            "gpu1", connected=False, front_end_pid=None, kvm_mode=None, kvm_reason=None,
            problems=("the GPU is gone",),
        ),
    ]  # fmt: skip
    lines = list(screens.status(answers.info(), found))
    assert lines[0] == "vgpud 0.1.0, pid 4711, up 3 h 12 min, log level info"
    assert lines[1] == "configuration: /etc/vgpud.toml"
    header, first, second = (cells(line) for line in lines[3:6])
    assert dict(zip(header, first, strict=True)) == {
        "DEVICE": "gpu0",
        "VMM": "pid 812",
        "MEMORY": "12 MiB of 1 GiB",
        "BLOBS": "3",
        "RESOURCES": "7",
        "LAYOUT": "window",
        "BUFFERS": "memfd",
        "SLOTS": "frontend",
        "GUEST PAT": "svm",
        "OUTPUTS": "1280x800",
    }
    assert second[:2] == ["gpu1", "-"]
    assert second[8] == "auto"
    assert lines[7:] == [
        "gpu0: guest PAT: auto, svm: AMD's KVM honours the guest's PAT",
        "gpu1: the GPU is gone",
    ]


def test_status_without_a_file_and_with_nothing_to_note() -> None:
    quiet = answers.device(kvm_mode=None, kvm_reason=None)
    lines = list(screens.status(answers.info(config_file=None), [quiet]))
    assert lines[1] == "configuration: built-in defaults"
    assert len(lines) == 5


def test_a_device_in_full() -> None:
    found = answers.device(
        slots="agent",
        agent=answers.agent(),
        display=True,
        outputs=(
            models.Output(scanout=0, width=1280, height=800, showing=(640, 480)),
            models.Output(scanout=1, width=800, height=600, showing=None),
        ),
        problems=("flag refused", "no GPU"),
    )
    lines = [line.split("  ", 1) for line in screens.device(found)]
    shown = [(label.strip(), value.strip()) for label, value in lines]
    assert ("VMM", "pid 812, with a display") in shown
    assert ("guest PAT", "auto, svm: AMD's KVM honours the guest's PAT") in shown
    assert ("output 0", "1280x800, shows 640x480") in shown
    assert ("output 1", "800x600, off") in shown
    words = "pid 900, slots 8 to 23, window at 0x100000000, flags 0x8 (refused), forced-wb: "
    assert ("agent", words + "this kernel takes no flag") in shown
    assert [value for label, value in shown if label == "problem"] == ["flag refused", "no GPU"]


@pytest.mark.parametrize(("accepted", "word"), [(True, "accepted"), (None, "not tried")])
def test_an_agent_that_is_somewhere_else(accepted: bool | None, word: str) -> None:
    attached = answers.agent(guest_phys_addr=None, flag_accepted=accepted, pid=None)
    text = "\n".join(screens.device(answers.device(agent=attached)))
    assert f"connected, slots 8 to 23, window nowhere, flags 0x8 ({word})" in text


def test_blobs() -> None:
    found = [
        answers.blob(),
        answers.blob(
            1 << 32, origin="vmm", mapped=False, offset=None, map_info=None, flags=0, reason=None
        ),
    ]
    header, *rows = (cells(line) for line in screens.blobs(found))
    assert header[:3] == ["DEVICE", "BLOB", "OF"]
    assert rows == [
        ["gpu0", "5", "guest", "host3d", "1 MiB", "0x10000", "-", "wc", "0x8", "as asked for"],
        ["gpu0", "0x100000000", "vmm", "host3d", "1 MiB", "-", "-", "-", "0x0"],
    ]


def test_slots() -> None:
    found = [answers.slot(), answers.slot(owner="frontend", slot=None, guest_phys_addr=None)]
    _, *rows = (cells(line) for line in screens.slots(found))
    assert rows == [
        ["gpu0", "agent", "8", "bar", "256 MiB", "0x0", "0x100000000", "0x8"],
        ["gpu0", "frontend", "-", "bar", "256 MiB", "0x0", "-", "0x8"],
    ]


def test_an_event_is_one_line_whatever_it_says() -> None:
    line = screens.event(answers.event())
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.250 slot\.refused gpu0 the agent .*", line)
    assert line.endswith("the agent refused a slot slot=8 flags=0x8 errno=22")
    hostile = answers.event(message="two\nlines\x1b[2J", resource=9, device=None, data={})
    assert screens.event(hostile).endswith("slot.refused resource 9 two\\nlines\\x1b[2J")


def test_a_reload_says_when_each_change_counts() -> None:
    result = models.Reloaded(
        applied=("device gpu0: memory_limit 1GiB -> 2GiB", "device gpu1: added"),
        next_connection=("device gpu0: window 1MiB -> 2MiB",),
        restart=(),
    )
    assert list(screens.reloaded(result)) == [
        "applied:",
        "  device gpu0: memory_limit 1GiB -> 2GiB",
        "  device gpu1: added",
        "when the device's VMM connects again:",
        "  device gpu0: window 1MiB -> 2MiB",
    ]
    nothing = models.Reloaded(applied=(), next_connection=(), restart=())
    assert list(screens.reloaded(nothing)) == ["nothing has changed"]
    later = models.Reloaded(applied=(), next_connection=(), restart=("runtime_dir",))
    assert list(screens.reloaded(later)) == ["after a restart of the daemon:", "  runtime_dir"]
