"""The daemon as a library: what a VMM that has it in its own process hands to it."""

from __future__ import annotations

import asyncio
import grp
import os
import threading
from pathlib import Path

import pytest

from vgpud.control.models import Reloaded
from vgpud.daemon.config import Config
from vgpud.daemon.daemon import Daemon
from vgpud.daemon.notify import Notifier
from vgpud.daemon.reloader import Reloader
from vgpud.errors import ConfigError
from vgpud.publish import unheard
from vgpud.slots.agent import AgentSlots

TEXT = '[[device]]\nname = "gpu0"\nslots = "local"\n[[device]]\nname = "gpu1"\nslots = "local"\n'


def test_slots_in_a_vm_of_this_process_are_those_that_are_given() -> None:
    slots = {name: AgentSlots(name, unheard) for name in ("gpu0", "gpu1")}
    daemon = Daemon(Config.from_toml(TEXT), slots=slots)
    assert {name: device.slots for name, device in daemon.devices.items()} == slots


def test_a_device_without_its_vm_is_a_fault_of_the_configuration() -> None:
    slots = {"gpu0": AgentSlots("gpu0", unheard)}
    with pytest.raises(ConfigError) as caught:
        Daemon(Config.from_toml(TEXT), slots=slots)
    [line] = str(caught.value).splitlines()
    assert 'device gpu1: slots = "local": this process has no VM' in line


class Slow(Notifier):
    """A service manager that takes its time to hear of a reload."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def reloading(self) -> None:
        self.asked.set()
        await self.go_on.wait()


def config_file(directory: Path, *names: str) -> Path:
    path = directory / "vgpud.toml"
    tables = [f'[[device]]\nname = "{name}"\nwindow = "1MiB"\n' for name in names]
    path.write_text(f'[daemon]\nruntime_dir = "{directory}/run"\n' + "".join(tables))
    return path


def test_nothing_is_read_anew_once_the_end_has_begun(short_directory: Path) -> None:
    """A device that was added then would never be ended."""

    async def main() -> None:
        notifier = Slow()
        daemon = Daemon(Config.load(config_file(short_directory, "one")), notifier=notifier)
        running = asyncio.create_task(daemon.run())
        await daemon.wait_listening()
        config_file(short_directory, "one", "two")
        reloading = asyncio.create_task(daemon.reload())
        await notifier.asked.wait()
        daemon.stop()
        await running
        notifier.go_on.set()
        with pytest.raises(ConfigError, match="the daemon is stopping"):
            await reloading
        assert [*daemon.devices] == ["one"]
        assert [*(short_directory / "run").iterdir()] == []

    asyncio.run(main())


def test_a_bug_in_a_reload_does_not_end_the_daemon(
    short_directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def buggy(_: Reloader) -> Reloaded:
        reloads.append(None)
        raise RuntimeError("a bug")

    reloads: list[None] = []
    monkeypatch.setattr(Reloader, "reload", buggy)

    async def main() -> None:
        daemon = Daemon(Config.load(config_file(short_directory, "one")))
        running = asyncio.create_task(daemon.run())
        await daemon.wait_listening()
        for count in (1, 2):
            daemon.request_reload()
            while len(reloads) < count:
                assert not running.done()
                await asyncio.sleep(0.01)
        daemon.stop()
        await running

    asyncio.run(main())
    assert caplog.text.count("RuntimeError: a bug") == 2


def test_a_reload_looks_names_up_in_a_thread(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory service may take seconds for each."""
    asked: list[tuple[str, int]] = []

    def group(name: str) -> grp.struct_group:
        asked.append((name, threading.get_ident()))
        return grp.struct_group((name, "", os.getegid(), []))

    async def main() -> None:
        path = config_file(short_directory, "one")
        daemon = Daemon(Config.load(path))
        running = asyncio.create_task(daemon.run())
        await daemon.wait_listening()
        monkeypatch.setattr(grp, "getgrnam", group)
        text = path.read_text().replace("[daemon]\n", '[daemon]\nallow_groups = ["admins"]\n')
        path.write_text(f'{text}[[device]]\nname = "two"\nwindow = "1MiB"\nsocket_group = "vms"\n')
        await daemon.reload()
        assert sorted(name for name, _ in asked) == ["admins", "vms"]
        assert threading.get_ident() not in {thread for _, thread in asked}
        daemon.stop()
        await running

    asyncio.run(main())
