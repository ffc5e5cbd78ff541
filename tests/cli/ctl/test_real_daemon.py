"""`vgpud ctl` at a real daemon with a front-end whose guest is at work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.gpu import driver
from tests.hostile.siege import NO_ENTRIES, command, entries
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from vgpud.cli import main as cli
from vgpud.daemon.config import Config
from vgpud.gpu.display import png
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import CapsetId, ResponseType

OK = ResponseType.OK_NODATA
SIZE = 64 << 10
BACKING = 20 << 20
SIDE = 64

Ctl = Callable[..., str]


@pytest.fixture
def daemon(short_directory: Path) -> Iterator[DaemonThread]:
    """A daemon with devices gpu0 and gpu1, whose file can be read again."""
    text = f'[daemon]\nruntime_dir = "{short_directory}"\n'
    for name in ("gpu0", "gpu1"):
        text += f'[[device]]\nname = "{name}"\nwindow = "16MiB"\nmemory_limit = "128MiB"\n'
    file = short_directory / "vgpud.toml"
    file.write_text(text)
    with DaemonThread(Config.load(file)) as daemon:
        yield daemon


@pytest.fixture
def guest(daemon: DaemonThread, short_directory: Path) -> Iterator[FrontEnd]:
    """A guest on gpu0 that shows a blue picture and has filled a mapped blob."""
    with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
        assert run(fe, c.ResourceCreate2D, 9, 2, SIDE, SIDE) == OK
        fe.ram.write(BACKING, b"\xff\x00\x00\x00" * SIDE * SIDE)
        assert run(fe, c.ResourceAttachBacking, 9, entries(BACKING, SIDE * SIDE * 4)) == OK
        assert run(fe, c.TransferToHost2D, Rect(0, 0, SIDE, SIDE), 0, 9) == OK
        assert run(fe, c.SetScanout, Rect(0, 0, SIDE, SIDE), 0, 9) == OK
        assert run(fe, c.CtxCreate, CapsetId.DMA, b"", ctx_id=1) == OK
        assert run(fe, c.ResourceCreateBlob, 5, 2, 1, 0, SIZE, NO_ENTRIES, ctx_id=1) == OK
        assert run(fe, c.CtxAttachResource, 5, ctx_id=1) == OK
        assert run(fe, c.ResourceMapBlob, 5, 0) == ResponseType.OK_MAP_INFO
        fill(fe)
        yield fe


@pytest.fixture
def ctl(daemon: DaemonThread, short_directory: Path, capfd: pytest.CaptureFixture[str]) -> Ctl:
    """What `vgpud ctl` prints, if all is well."""

    def say(*arguments: str | Path) -> str:
        path = str(short_directory / "control.sock")
        assert cli.main(["ctl", "--socket", path, *map(str, arguments)]) == 0, capfd.readouterr()
        return capfd.readouterr().out

    return say


def run(fe: FrontEnd, kind: type[Any], *fields: Any, **header: int) -> int:
    """Have a command done, return the type of its response."""
    answer = fe.command(encode(command(kind, *fields, **header)), response_size=512)
    return int.from_bytes(answer[:4], "little")


def fill(fe: FrontEnd) -> None:
    """Have the engine write the blob."""
    assert run(fe, c.Submit3D, dma.encode([driver.fill(5, 0, SIZE, 7)]), ctx_id=1) == OK


def test_what_a_guest_has_is_seen(guest: FrontEnd, ctl: Ctl) -> None:
    first, second = json.loads(ctl("devices", "--json"))
    assert (first["connected"], first["resources"], first["blobs"]) == (True, 2, 1)
    assert first["memory_used"] >= SIZE
    assert first["outputs"][0]["showing"] == [SIDE, SIDE]
    assert second["connected"] is False
    (blob,) = json.loads(ctl("blobs", "gpu0", "--json"))
    assert (blob["blob"], blob["size"], blob["mapped"], blob["offset"]) == (5, SIZE, True, 0)
    assert json.loads(ctl("blobs", "gpu1", "--json")) == []
    (slot,) = json.loads(ctl("slots", "--json"))
    assert (slot["device"], slot["owner"], slot["memory_size"]) == ("gpu0", "frontend", 16 << 20)
    for verb in ("status", "devices", "blobs", "slots"):
        assert "gpu0" in ctl(verb)
    assert "output 0     1280x800, shows 64x64\n" in ctl("devices", "gpu0")


def test_a_screenshot_is_what_the_guest_drew(
    guest: FrontEnd, ctl: Ctl, short_directory: Path
) -> None:
    blue = np.zeros((SIDE, SIDE, 3), np.uint8)
    blue[..., 2] = 255
    ctl("screenshot", "gpu0", "--out", short_directory / "shot.png")
    assert (short_directory / "shot.png").read_bytes() == png.encode(blue)


def test_a_blob_can_be_had_as_a_file(guest: FrontEnd, ctl: Ctl, short_directory: Path) -> None:
    file = short_directory / "blob"
    answer = json.loads(ctl("blob.export", '{"device": "gpu0", "blob": 5}', "--out", file))
    assert answer["size"] == SIZE
    assert file.read_bytes() == (7).to_bytes(4, "little") * (SIZE // 4)


def test_metrics_count_what_the_guest_does(guest: FrontEnd, ctl: Ctl) -> None:
    found = {
        (sample.name, sample.labels.get("device"), sample.labels.get("command")): sample.value
        for family in text_string_to_metric_families(ctl("metrics"))
        for sample in family.samples
    }
    assert found[("vgpud_device_connected", "gpu0", None)] == 1
    assert found[("vgpud_device_connected", "gpu1", None)] == 0
    assert found[("vgpud_commands_total", "gpu0", "submit_3d")] == 1
    assert found[("vgpud_commands_total", "gpu0", "resource_map_blob")] == 1
    assert found[("vgpud_maps_total", "gpu0", None)] == 1
    assert found[("vgpud_sessions_total", "gpu0", None)] == 1
    assert found[("vgpud_sessions_total", "gpu1", None)] == 0
    assert found[("vgpud_slots", "gpu0", None)] == 1
    moved = sum(
        found[(f"vgpud_dma_{way}_bytes_total", "gpu0", None)] for way in ("written", "snooped")
    )
    assert moved == SIZE


def test_watch_sees_a_guest_at_work(guest: FrontEnd, ctl: Ctl) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            fill(guest)
            time.sleep(0.01)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        lines = ctl("watch", "--interval", "0.3", "--count", "2", "--json").splitlines()
    finally:
        ended.set()
        worker.join()
    for line in lines:
        first, second = json.loads(line)["devices"]
        assert 1 < first["rates"]["commands"] < 200
        assert first["rates"]["bytes_written"] + first["rates"]["bytes_snooped"] > SIZE
        assert set(second["rates"].values()) == {0.0}


def test_events_tell_of_a_guest_that_goes(guest: FrontEnd, ctl: Ctl) -> None:
    timer = threading.Timer(0.3, guest.disconnect)
    timer.start()
    line = ctl("events", "--kind", "device.dis*", "--device", "gpu0", "--count", "1")
    timer.join()
    assert "device.disconnected gpu0 " in line


def test_a_reload_says_what_it_did(
    ctl: Ctl, short_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = short_directory / "vgpud.toml"
    file.write_text(file.read_text().replace("128MiB", "64MiB", 1))
    output = ctl("reload")
    assert output.startswith("applied:\n  ")
    assert "memory_limit" in output
    assert ctl("reload") == "nothing has changed\n"
    good = file.read_text()
    file.write_text(good + "windows = 5\nnonsense = 1\n")
    control = str(short_directory / "control.sock")
    assert cli.main(["ctl", "--socket", control, "reload"]) == 1
    output, errors = capfd.readouterr()
    assert output == ""
    keys = [line.split(": ")[3].split(" ")[0] for line in errors.splitlines()]
    assert keys == ["windows", "nonsense"]
    file.write_text(good)
    assert ctl("reload") == "nothing has changed\n"
