"""Notifications to the service manager, over a real socket in its place."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgpud.daemon.notify import Notifier
from vgpud.daemon.watchdog import Watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        name = str(tmp_path / "notify") if request.param == "path" else f"\0vgpud-{os.getpid()}"
        sock.bind(name)
        yield sock


def environment(manager: socket.socket) -> dict[str, str]:
    name = manager.getsockname()
    return {"NOTIFY_SOCKET": name if isinstance(name, str) else f"@{name[1:].decode()}"}


def said(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(4096).decode().splitlines()
    return dict(line.split("=", maxsplit=1) for line in lines)


def silent(manager: socket.socket) -> bool:
    manager.setblocking(False)
    try:
        manager.recv(4096)
    except BlockingIOError:
        return True
    finally:
        manager.settimeout(5)
    return False


def test_a_life(manager: socket.socket) -> None:
    variables = {**environment(manager), "HOME": "/root"}

    async def live() -> None:
        notifier = Notifier.from_environment(variables)
        assert notifier.wanted
        await notifier.ready("1 device")
        await notifier.status("two\nlines, READY=0")
        await notifier.reloading()
        await notifier.ready("2 devices")
        await notifier.alive()
        await notifier.stopping()
        notifier.close()

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    asyncio.run(live())
    assert variables == {"HOME": "/root"}, "none of this is for our children"
    assert said(manager) == {"READY": "1", "STATUS": "1 device"}
    assert said(manager) == {"STATUS": "two lines, READY=0"}
    reloading = said(manager)
    assert before <= int(reloading.pop("MONOTONIC_USEC"))
    assert reloading == {"RELOADING": "1"}
    assert said(manager) == {"READY": "1", "STATUS": "2 devices"}
    assert said(manager) == {"WATCHDOG": "1"}
    assert said(manager) == {"STOPPING": "1", "STATUS": "Stopping"}


def test_nobody_to_tell() -> None:
    async def live() -> None:
        notifier = Notifier.from_environment({})
        assert not notifier.wanted
        assert notifier.watchdog is None
        await notifier.ready("1 device")

    asyncio.run(live())


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_time_that_the_watchdog_allows(
    variables: dict[str, str], seconds: float | None
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/run/notify", **variables})
    assert notifier.watchdog == seconds


@pytest.mark.parametrize("kind", ["gone", "dead", "vsock"])
def test_a_service_manager_that_can_not_be_reached_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "notify"
    if kind == "dead":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(path))

    async def live() -> None:
        where = "vsock:2:1234" if kind == "vsock" else str(path)
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": where})
        for _ in range(3):
            await notifier.ready("1 device")
        notifier.close()

    asyncio.run(live())
    [line] = caplog.messages
    assert line.startswith("service manager not notified ")


@pytest.mark.parametrize("noticed", [True, False])
def test_a_service_manager_that_comes_back_is_told_again(tmp_path: Path, noticed: bool) -> None:
    path = tmp_path / "notify"

    async def live() -> dict[str, str]:
        notifier = Notifier(str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
            first.bind(str(path))
            await notifier.ready("1 device")
        if noticed:
            await notifier.status("to nobody")
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
            second.settimeout(5)
            second.bind(str(path))
            await notifier.status("back")
            notifier.close()
            return said(second)

    assert asyncio.run(live()) == {"STATUS": "back"}


def test_a_service_manager_that_does_not_read_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notify"

    async def live() -> None:
        notifier = Notifier(str(path))
        for _ in range(2000):
            await notifier.alive()
        notifier.close()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        begin = time.monotonic()
        asyncio.run(live())
        assert time.monotonic() - begin < 10


class Device:
    """One that answers as long as `works` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.works = asyncio.Event()
        self.works.set()

    async def alive(self) -> bool:
        await self.works.wait()
        return True


def test_signs_of_life_stop_while_a_device_hangs(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    allowed = 0.4

    async def live() -> None:
        devices = [Device("good"), Device("bad")]
        notifier = Notifier.from_environment(
            {**environment(manager), "WATCHDOG_USEC": str(round(allowed * 1e6))}
        )
        watchdog = Watchdog(notifier, lambda: devices)
        changes: list[frozenset[str]] = []
        task = asyncio.ensure_future(watchdog.run(lambda: changes.append(watchdog.silent)))
        await asyncio.sleep(3 * allowed)
        signs = 0
        while not silent(manager):
            signs += 1
        assert 5 <= signs <= 7, "twice in the time that is allowed"
        devices[1].works.clear()
        await asyncio.sleep(allowed)
        while not silent(manager):
            pass
        await asyncio.sleep(2 * allowed)
        assert silent(manager)
        assert changes == [frozenset({"bad"})]
        devices[1].works.set()
        await asyncio.sleep(allowed)
        assert not silent(manager)
        assert changes == [frozenset({"bad"}), frozenset()]
        task.cancel()
        await asyncio.wait([task])
        notifier.close()

    asyncio.run(live())
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.messages[0].startswith("device hangs device=bad seconds=0.1")
    assert caplog.messages[1] == "device answers again device=bad"


def test_no_watchdog_is_no_work() -> None:
    watchdog = Watchdog(Notifier(None), lambda: pytest.fail("asked"))
    asyncio.run(asyncio.wait_for(watchdog.run(lambda: None), 1))
