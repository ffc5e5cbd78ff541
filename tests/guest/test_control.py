"""The control socket while a stock guest is at work: another mode, screenshots, blobs of the VMM's.

On vhost-user-test-device-pci, which has no display of its own; on vhost-user-gpu-pci QEMU's display
decides about modes, and is asked.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.guest import checks
from tests.guest.pictures import Picture, picture, settled_difference
from tests.rig.build import Rig
from tests.rig.qemu import Guest
from tests.support.png import decode
from tests.support.process import DaemonProcess, config_toml
from tests.support.until import until
from vgpud.client import Client
from vgpud.control.rpc import RpcError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB = 1 << 20
OFF = np.zeros((0, 0, 3), np.uint8)
MODES = "/sys/class/drm/card0-Virtual-1/modes"


@pytest.fixture(scope="module")
def client(short_directory: Path) -> Iterator[Client]:
    """A client of a daemon with one device."""
    with (
        DaemonProcess(short_directory, config_toml(short_directory)),
        Client(short_directory / "control.sock") as client,
    ):
        yield client


@pytest.fixture(scope="module")
def guest(rig: Rig, short_directory: Path, client: Client) -> Iterator[Guest]:
    """A booted guest on it."""
    with Guest(rig, "test", socket=short_directory / "gpu0.sock") as guest:
        guest.wait_boot()
        yield guest


def screenshot(client: Client) -> Picture:
    """What the daemon says the first output shows."""
    try:
        value, file = client.call_with_fd("device.screenshot", {"device": "gpu0"})
    except RpcError as error:
        if "shows nothing" not in error.message:
            raise
        return OFF
    with file as fd:
        told = cast(dict[str, Any], value)
        seen = decode(os.pread(fd.fileno(), told["size"], 0))
    assert seen.shape == (told["height"], told["width"], 3)
    return seen


def taken_by_ctl(directory: Path) -> Picture:
    """What `vgpud ctl screenshot` leaves in a file."""
    picture = directory / "screenshot.png"
    command = [sys.executable, "-m", "vgpud", "ctl", "--socket", str(directory / "control.sock")]
    subprocess.run([*command, "screenshot", "gpu0", "--out", str(picture)], check=True)
    return decode(picture.read_bytes())


def device(client: Client) -> dict[str, Any]:
    return cast(dict[str, Any], client.call("device.get", {"device": "gpu0"}))


def uevents(guest: Guest) -> int:
    """How many the guest's kernel has sent; a change of modes is one (HOTPLUG=1)."""
    return int(guest.run("cat /sys/kernel/uevent_seqnum").text)


def resize(client: Client, guest: Guest, width: int, height: int) -> None:
    """Offer another mode, and do what is done on a desktop that a hotplug event wakes."""
    before = uevents(guest)
    client.call("device.resize", {"device": "gpu0", "width": width, "height": height})
    until(
        lambda: uevents(guest) != before,
        complaint="the guest's driver has not told of it",
        pause=0.1,
    )
    guest.run("echo detect > /sys/class/drm/card0-Virtual-1/status")


def test_a_resize_is_a_hotplug_for_the_guest(client: Client, guest: Guest) -> None:
    assert guest.run(f"head -n 1 {MODES}").lines == ("1280x800",)
    resize(client, guest, 1024, 768)
    assert guest.run(f"head -n 1 {MODES}").lines == ("1024x768",)
    assert checks.driver_errors(guest) == ()
    (output,) = device(client)["outputs"]
    assert (output["width"], output["height"]) == (1024, 768)


def test_a_screenshot_is_the_picture_that_the_guest_drew(
    client: Client, guest: Guest, short_directory: Path
) -> None:
    resize(client, guest, 1152, 864)
    expected = {
        "mode": picture(1, 0, 0, 1152, 864),
        "offset": picture(6, 37, 21, 1152, 864),
        "small": picture(8, 0, 0, 800, 600),
        "off": OFF,
    }
    differences = {}
    for scene in checks.scenes(guest, "kms"):
        if scene in expected:
            _, differences[scene] = settled_difference(expected[scene], lambda: screenshot(client))
        if scene == "offset":
            # As an operator takes it; it has settled by now.
            assert np.array_equal(taken_by_ctl(short_directory), expected[scene])
    assert differences == dict.fromkeys(expected, "")
    assert checks.driver_errors(guest) == ()


def test_a_guest_works_beside_a_blob_of_the_vmms(client: Client, guest: Guest) -> None:
    made = cast(dict[str, Any], client.call("blob.create", {"device": "gpu0", "size": MIB}))
    where = {"device": "gpu0", "blob": made["blob"]}
    mapped = cast(dict[str, Any], client.call("blob.map", where))
    assert mapped["offset"] == 255 * MIB
    value, file = client.call_with_fd("blob.export", where)
    told = cast(dict[str, Any], value)
    with file as fd, mmap.mmap(fd.fileno(), MIB, offset=told["fd_offset"]) as view:
        view[:] = b"\x5a" * MIB
        checks.assert_checks(guest.run("blobs", timeout=200), checks.BLOBS)
        assert view[:] == b"\x5a" * MIB
    (slot,) = client.pages("slot.list")
    assert cast(dict[str, Any], slot)["memory_size"] == 256 * MIB
    client.call("blob.destroy", where)
    assert list(client.pages("blob.list")) == []


def test_where_qemu_has_a_display_its_window_decides(rig: Rig, short_directory: Path) -> None:
    directory = short_directory / "gpu-pci"
    directory.mkdir()
    with (
        DaemonProcess(directory, config_toml(directory)),
        Client(directory / "control.sock") as client,
        Guest(rig, "gpu", socket=directory / "gpu0.sock") as guest,
    ):
        guest.wait_boot()
        assert device(client)["display"]
        with pytest.raises(RpcError, match="its own display"):
            client.call("device.resize", {"device": "gpu0", "width": 1024, "height": 768})
        guest.start("kms")
        guest.wait_line(r"^READY mode$")
        _, differs = settled_difference(picture(1, 0, 0, 1280, 800), lambda: screenshot(client))
        assert differs == ""
