"""Any language can speak the control API: a script with `socket` and `json` drives all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu import driver as gpu
from tests.support.front_end import FrontEnd
from tests.support.process import DaemonProcess
from vgpud.control.methods import METHODS
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ResponseType

SCRIPT = Path(__file__).with_name("plain_client.py")
CONFIG = """
[daemon]
runtime_dir = "{}"

[[device]]
name = "gpu0"

[[device]]
name = "gpu1"
slots = "agent"

[[slot_policy]]
match = {{ device = "gpu1" }}
layout = "per-blob"
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """The runtime directory of a daemon in a process of its own."""
    with DaemonProcess(tmp_path, CONFIG.format(tmp_path), devices=("gpu0", "gpu1")):
        yield tmp_path


def show_picture(front_end: FrontEnd) -> None:
    """Have an output show something."""
    whole = Rect(0, 0, 64, 48)
    for command in (gpu.create_2d(1, 64, 48), gpu.set_scanout(0, 1, whole)):
        answer = front_end.command(encode(command))
        assert answer[:4] == ResponseType.OK_NODATA.to_bytes(4, "little")


def test_a_plain_script_drives_every_method(served: Path) -> None:
    with (
        FrontEnd.connect(served / "gpu0.sock").handshake() as front_end,
        FrontEnd.connect(served / "gpu1.sock").handshake(),
    ):
        show_picture(front_end)
        sockets = [served / "control.sock", served / "plain.sock"]
        done = subprocess.run(
            [sys.executable, "-I", SCRIPT, *sockets, "gpu0", "gpu1"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert set(seen["methods"]) == set(METHODS)
    assert {"device.resized", "blob.created", "agent.attached", "slot.refused", "slot.set"} <= set(
        seen["events"]
    )
