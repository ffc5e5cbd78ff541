"""A stock guest draws frames, and the screen equals that of QEMU's own device, pixel by pixel.

Three devices run the same guest program: QEMU's in-process virtio-gpu-pci (the reference), ours on
vhost-user-gpu-pci (seen through QEMU's screendump), and ours on the generic vhost-user device,
which has no display (seen in the daemon).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.guest.checks import SCENES, driver_errors, scenes
from tests.guest.pictures import Picture, difference, picture, settled_difference
from tests.rig.build import Rig
from tests.rig.qemu import Guest
from tests.support.daemon_thread import DaemonThread
from tests.support.process import DaemonProcess, config_toml
from vgpud.daemon.config import Config
from vgpud.gpu.wire import edid

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

OFF = np.zeros((0, 0, 3), np.uint8)
"""What a scanout that is off is in these tests."""


@dataclass
class Performance:
    """One run of `kms`: what was on the screen in each scene, and what was wrong with it."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    differences: dict[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    driver_errors: tuple[str, ...] = ()
    qemu_messages: tuple[str, ...] = ()
    edid: bytes = b""


def perform(
    guest: Guest,
    look: Callable[[], Picture],
    reference: dict[str, Picture] | None = None,
) -> Performance:
    """Boot, run `kms`, and look at each of its scenes."""
    result = Performance()
    guest.wait_boot()
    for scene in scenes(guest, "kms"):
        expected = look() if reference is None else reference[scene]
        seen, differs = settled_difference(expected, look)
        result.pictures[scene] = seen
        result.differences[scene] = differs
    result.lines = tuple(line.text for line in guest.console)
    result.driver_errors = driver_errors(guest)
    dump = guest.run("hexdump -v -e '/1 \"%02x\"' /sys/class/drm/card0-Virtual-1/edid; echo")
    result.edid = bytes.fromhex(dump.text)
    result.qemu_messages = guest.stderr
    return result


@pytest.fixture(scope="module")
def reference(rig: Rig) -> Performance:
    """QEMU's own device."""
    with Guest(rig, "inproc") as guest:
        return perform(guest, guest.screendump)


@pytest.fixture(scope="module")
def on_gpu_pci(rig: Rig, short_directory: Path, reference: Performance) -> Performance:
    """Our device behind vhost-user-gpu-pci, through QEMU's eyes."""
    with (
        DaemonProcess(short_directory, config_toml(short_directory)) as daemon,
        Guest(rig, "gpu", socket=daemon.socket()) as guest,
    ):
        return perform(guest, guest.screendump, reference.pictures)


@pytest.fixture(scope="module")
def on_test_device(rig: Rig, short_directory: Path, reference: Performance) -> Performance:
    """Our device behind the generic one, through the daemon's eyes."""
    config = Config.from_toml(config_toml(short_directory))
    expected = {**reference.pictures, "off": OFF}
    with (
        DaemonThread(config) as daemon,
        Guest(rig, "test", socket=config.socket_path("gpu0")) as guest,
    ):

        def look() -> Picture:
            seen = daemon.screenshot()
            return OFF if seen is None else seen

        return perform(guest, look, expected)


@pytest.mark.parametrize("scene", SCENES)
def test_gpu_pci_shows_what_qemus_own_device_shows(on_gpu_pci: Performance, scene: str) -> None:
    assert on_gpu_pci.differences[scene] == ""


@pytest.mark.parametrize("scene", SCENES)
def test_the_daemon_has_what_qemus_own_device_shows(
    on_test_device: Performance, scene: str
) -> None:
    assert on_test_device.differences[scene] == ""


def test_the_reference_is_what_the_guest_drew(reference: Performance) -> None:
    """Else two blank screens would be equal too."""
    assert tuple(reference.pictures) == SCENES
    assert difference(picture(1, 0, 0, 1280, 800), reference.pictures["mode"]) == ""
    assert difference(picture(6, 37, 21, 1280, 800), reference.pictures["offset"]) == ""
    assert difference(picture(8, 0, 0, 800, 600), reference.pictures["small"]) == ""
    stamp = picture(1300, 300 * 53 % (1280 - 64), 300 * 29 % (800 - 64), 64, 64)
    y, x = 300 * 29 % (800 - 64), 300 * 53 % (1280 - 64)
    assert difference(stamp, reference.pictures["flips"][y : y + 64, x : x + 64]) == ""
    flushed = reference.pictures["dirty"][231 : 231 + 77, 331 : 331 + 101]
    assert difference(picture(4000, 331, 231, 101, 77), flushed) == ""


@pytest.mark.parametrize("device", ["on_gpu_pci", "on_test_device"])
def test_all_frames_were_flipped_without_a_complaint(
    device: str, request: pytest.FixtureRequest
) -> None:
    performance: Performance = request.getfixturevalue(device)
    assert "OUTPUTS 1" in performance.lines
    assert any(re.match(r"MODE 1280x800@\d+$", line) for line in performance.lines)
    assert any(re.match(r"FLIPPED 300 in ", line) for line in performance.lines)
    assert performance.driver_errors == ()
    assert performance.qemu_messages == ()


def test_the_guest_reads_our_edid(on_test_device: Performance) -> None:
    parsed = edid.parse(on_test_device.edid)
    assert (parsed.preferred.h_active, parsed.preferred.v_active) == (1280, 800)
    assert parsed.name


def test_outputs_are_those_of_the_configuration(rig: Rig, short_directory: Path) -> None:
    config = config_toml(short_directory, outputs='["1024x768", "640x480", "1920x1080"]')
    with (
        DaemonProcess(short_directory, config) as daemon,
        Guest(rig, "test", socket=daemon.socket()) as guest,
    ):
        guest.wait_boot()
        shown = guest.run("for c in /sys/class/drm/card0-Virtual-*; do head -n 1 $c/modes; done")
        assert shown.lines == ("1024x768", "640x480", "1920x1080")
        status = guest.run("cat /sys/class/drm/card0-Virtual-*/status")
        assert status.lines == ("connected",) * 3
        assert driver_errors(guest) == ()
