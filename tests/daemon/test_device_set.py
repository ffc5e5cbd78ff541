"""Devices that are added and removed: their sockets, and devices that do not end."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent_daemon import spec
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.events import Events
from vgpud.control.models import Event
from vgpud.daemon import device_set
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.device_set import DeviceSet
from vgpud.errors import ConfigError
from vgpud.unix.activation import Activated
from vgpud.unix.socket_place import SocketPlace


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vgpud-", dir="/tmp") as path:
        yield Path(path)


class Stuck(DeviceServer):
    """One whose session does not end before `release` is set: a thread of it hangs."""

    def __init__(self, name: str, events: Events) -> None:
        super().__init__(spec(name, SlotOwner.FRONTEND), events=events)
        self.release = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        try:
            await super().serve(listener)
        finally:
            await self.release.wait()


def reachable(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as front_end:
        return front_end.connect_ex(str(path)) == 0


def test_a_socket_that_was_to_be_taken_over_stays_where_another_can_not_be_had(
    directory: Path,
) -> None:
    async def main() -> None:
        path, taken = directory / "s", directory / "taken"
        taken.write_text("precious")
        old = DeviceServer(spec("old", SlotOwner.FRONTEND), events=Events())
        devices = DeviceSet([old], Activated())
        async with asyncio.TaskGroup() as group:
            devices.start(old, devices.open({"old": SocketPlace(path)})["old"], group)
            for _ in range(2):
                with pytest.raises(ConfigError, match="exists and is no socket"):
                    devices.open({"new": SocketPlace(path), "bad": SocketPlace(taken)}, ["old"])
                assert reachable(path)
            shared = devices.open({"new": SocketPlace(path)}, ["old"])["new"]
            await devices.remove(["old"])
            assert reachable(path)
            shared.close()
            assert not path.exists()

    asyncio.run(main())


def test_a_device_that_does_not_end_is_left_behind_and_watched(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or no configuration could be read any more, and no watchdog would notice."""
    monkeypatch.setattr(device_set, "PATIENCE", 0.1)

    async def main() -> None:
        events, told = Events(), list[Event]()
        events.listen(told.append)
        bad = Stuck("bad", events)
        good = DeviceServer(spec("good", SlotOwner.FRONTEND), events=events)
        devices = DeviceSet([bad, good], Activated())
        async with asyncio.TaskGroup() as group:
            places = {name: SocketPlace(directory / name) for name in devices}
            for name, listener in devices.open(places).items():
                devices.start(devices[name], listener, group)
            await asyncio.sleep(0)
            await devices.remove(["bad", "good"])
            assert [*devices] == []
            assert [event.device for event in told if event.kind == "device.removed"] == ["good"]
            assert [*devices.served()] == [bad], "whoever watches asks it still"
            assert not (directory / "bad").exists()
            bad.release.set()
        assert [*devices.served()] == []
        assert [event.device for event in told if event.kind == "device.removed"] == ["good", "bad"]

    asyncio.run(main())
    assert "device does not end device=bad" in caplog.text
