"""Blobs as framebuffers, drawn by the guest and by the engine, and seen in the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.checks import driver_errors, scenes
from tests.guest.pictures import Picture, picture, settled_difference
from tests.rig.build import Rig
from tests.rig.qemu import Guest
from tests.support.daemon_thread import DaemonThread
from tests.support.process import config_toml
from vgpud.daemon.config import Config

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

STEPS = ("whole", "dirty", "blitted", "offset")


def _drawn() -> dict[str, Picture]:
    whole = picture(21, 0, 0, 1280, 800)
    dirty = whole.copy()
    dirty[51 : 51 + 77, 101 : 101 + 203] = picture(22, 101, 51, 203, 77)
    blitted = dirty.copy()
    blitted[320 : 320 + 48, 640 : 640 + 64] = picture(23, 0, 0, 64, 48)
    return dict(zip(STEPS, (whole, dirty, blitted, picture(24, 0, 0, 1280, 800)), strict=True))


@pytest.fixture(scope="module")
def differences(rig: Rig, short_directory: Path) -> dict[tuple[str, str], str]:
    """By kind of blob and step, what was wrong with the picture."""
    config = Config.from_toml(config_toml(short_directory))
    expected, found = _drawn(), {}
    with (
        DaemonThread(config) as daemon,
        Guest(rig, "test", socket=config.socket_path("gpu0")) as guest,
    ):

        def look() -> Picture:
            seen = daemon.screenshot()
            assert seen is not None, "the scanout is off"
            return seen

        guest.wait_boot()
        for kind in ("host", "guest"):
            for step in scenes(guest, f"scanout {kind}"):
                _, found[kind, step] = settled_difference(expected[step], look)
        assert driver_errors(guest) == ()
    return found


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["host", "guest"])
def test_a_blob_on_the_screen(
    differences: dict[tuple[str, str], str], kind: str, step: str
) -> None:
    assert differences[kind, step] == ""
