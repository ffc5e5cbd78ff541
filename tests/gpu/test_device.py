"""A whole device, with a front-end, as a value: its GPU and its rings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import Machine
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from tests.support.process import config_toml
from tests.support.until import until
from vgpud.daemon.config import Config
from vgpud.gpu import device as gpu_device
from vgpud.gpu.compose import compose
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.environment import Environment
from vgpud.gpu.state import DeviceState
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.commands import Submit3D
from vgpud.gpu.wire.header import Rect


async def saved(device: GpuDevice) -> DeviceState:
    """What a session will do: stop the rings, then ask for the value."""
    for index, handler in device._queues.items():
        await device.stop_queue(index)
        if handler.queue is not None:
            await handler.queue.stop()
    return await device.save()


async def again(device: GpuDevice, state: DeviceState) -> DeviceState:
    """The value of another device that was made from one."""
    other = compose(device.gpu.spec, Environment())
    other.set_memory(device._memory.table)
    try:
        await other.restore(state)
        return await other.save()
    finally:
        other.close()


def test_a_device_is_saved_with_its_rings_and_work_that_was_under_way(
    short_directory: Path,
) -> None:
    config = Config.from_toml(config_toml(short_directory))
    with (
        DaemonThread(config) as daemon,
        FrontEnd.connect(config.socket_path("gpu0")).handshake() as front_end,
    ):
        commands = (
            d.ctx_create(1),
            d.create_2d(1, 64, 64),
            d.set_scanout(0, 1, Rect(0, 0, 64, 64)),
            d.create_blob(2, 8 << 20),
            d.ctx_attach(2),
        )
        for command in commands:
            front_end.command(encode(command))
        # Long work, which is not waited for: the value has to have what comes of it.
        front_end.drivers[0].submit(encode(d.submit(d.fill(2, 0, 8 << 20, 0x01020304))), 24)
        device = daemon.daemon.devices["gpu0"].live
        assert device is not None
        until(lambda: device.gpu.counters.commands[Submit3D] == 1)

        def run(work: object) -> DeviceState:
            return asyncio.run_coroutine_threadsafe(work, daemon._loop).result(10)  # type: ignore[arg-type]

        state = run(saved(device))
        control, cursor = state.rings
        assert control is not None
        assert cursor is not None
        assert control.base == len(commands) + 1
        assert not control.fresh
        assert state.driven
        [blob] = [one for one in state.gpu.resources if one.id == 2]
        assert blob.contents == (0x01020304).to_bytes(4, "little") * (2 << 20)  # type: ignore[union-attr]
        restored = run(again(device, state))
        assert restored.gpu == state.gpu
        assert restored.driven


def test_a_thread_that_hangs_does_not_keep_a_session_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_device, "PATIENCE", 0.05)
    with Machine() as machine:
        spec = machine.spec

    async def test() -> None:
        device = compose(spec, Environment())
        hanging = threading.Event()

        def hang() -> Iterator[None]:
            hanging.wait()
            yield

        stuck = asyncio.create_task(device._executor.run_in_thread(hang()))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await device.free()
        device.close()
        hanging.set()
        with suppress(asyncio.CancelledError):
            await stuck

    asyncio.run(test())
