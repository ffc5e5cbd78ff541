"""A guest flips between pictures of one colour as fast as it can: no view of it has two."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.guest.pictures import Picture
from tests.rig.build import Rig
from tests.rig.qemu import Guest
from tests.support.png import decode
from tests.support.process import DaemonProcess, config_toml
from tests.support.until import until
from vgpud.client import Client
from vgpud.control.rpc import RpcError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

LOOKS = 50
SIZE = 1920, 1080
RED, BLUE = (255, 0, 0), (0, 0, 255)
MODE = f",xres={SIZE[0]},yres={SIZE[1]}"


def colours(picture: Picture) -> set[tuple[int, ...]]:
    packed = np.unique(picture @ np.array([1 << 16, 1 << 8, 1]))
    return {(one >> 16, one >> 8 & 0xFF, one & 0xFF) for one in packed.tolist()}


def screenshot(daemon: DaemonProcess) -> Picture:
    with Client(daemon.config.parent / "control.sock") as client:
        answer, fd = client.call_with_fd("device.screenshot", {"device": "gpu0"})
        assert isinstance(answer, dict)
        with fd:
            size = os.fstat(fd.fileno()).st_size
            return decode(os.pread(fd.fileno(), size, 0))


def drawn(view: Callable[[], Picture]) -> bool:
    """Whether the guest's program has begun: before, the output may be off."""
    with suppress(RpcError):
        return colours(view()) <= {RED, BLUE}
    return False


@pytest.mark.parametrize("device", ["inproc", "gpu", "test"])
def test_no_view_has_parts_of_two_frames(rig: Rig, short_directory: Path, device: str) -> None:
    """On QEMU's own device too: the yardstick."""
    outputs = f'["{SIZE[0]}x{SIZE[1]}"]'
    with DaemonProcess(short_directory, config_toml(short_directory, outputs=outputs)) as daemon:
        boot = {
            "inproc": lambda: Guest(rig, "inproc", properties=MODE),
            "gpu": lambda: Guest(rig, "gpu", socket=daemon.socket(), properties=MODE),
            "test": lambda: Guest(rig, "test", socket=daemon.socket()),
        }
        with boot[device]() as guest:
            guest.wait_boot()
            guest.start("kms colours")
            guest.wait_line("^READY start$")
            guest.start("")
            views: list[Callable[[], Picture]] = []
            if device != "test":
                views.append(guest.screendump)
            if device != "inproc":
                views.append(lambda: screenshot(daemon))
            until(lambda: all(drawn(view) for view in views))
            seen = []
            for _ in range(LOOKS):
                for view in views:
                    picture = view()
                    assert picture.shape == (SIZE[1], SIZE[0], 3)
                    seen.append(colours(picture))
                time.sleep(0.003)
            guest.start("")
            guest.wait_line("^READY frames$")
            guest.start("")
            assert guest.finish().status == 0
    torn = [one for one in seen if len(one) != 1]
    assert len(torn) == 0, f"{len(torn)} of {len(seen)} pictures have parts of two frames"
    assert {one for each in seen for one in each} == {RED, BLUE}
