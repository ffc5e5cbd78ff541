"""Freeing much memory takes no time of the event loop, as its thread's processor time says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from time import thread_time
from typing import Any, Final, TypeAlias

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import PAGE, Bar, Patience, Ram
from vgpud.coherency.slot_policy import GuestPat, Layout, Rule
from vgpud.gpu.environment import Environment
from vgpud.gpu.executor import Executor
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.resources import HostBlob
from vgpud.gpu.spec import DeviceSpec, PreferredMode
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.protocol import ResourceId

SIZE: Final = 256 << 20
"""Bytes, all of them in use: freeing them takes some 80 ms of some processor."""
MOST: Final = 0.05
"""Seconds of the event loop's thread, in many turns; it takes more than that to free the pages."""

Do: TypeAlias = Callable[[Command], Awaitable[None]]
Freeing: TypeAlias = Callable[[Gpu, Do], Awaitable[Any]]


async def reset(gpu: Gpu, do: Do) -> None:
    await gpu.empty()
    gpu.reset()


async def unref(gpu: Gpu, do: Do) -> None:
    await do(d.unref(1))


async def map_another(gpu: Gpu, do: Do) -> None:
    """Over what the guest has written to without a blob there."""
    await do(d.unmap_blob(1))
    await do(d.unref(1))
    gpu.layout.window.view(0, SIZE)[::PAGE] = 1  # type: ignore[attr-defined]
    await do(d.create_blob(2, SIZE))
    before = thread_time()
    await do(d.map_blob(2, 0))
    assert thread_time() - before < MOST


def measure(layout: Layout, freeing: Freeing) -> float:
    """Return the processor time of the event loop's thread for freeing a large blob in use."""

    async def test() -> float:
        ram, bar, executor = Ram(), Bar(Patience(), SIZE), Executor("gpu0")
        spec = DeviceSpec(
            name="gpu0",
            window=SIZE,
            memory_limit=4 * SIZE,
            outputs=(PreferredMode(640, 480),),
            guest_pat=GuestPat.HONORED,
            rules=(Rule(layout=layout),),
            layout=layout,
        )
        gpu = Gpu(spec, Environment(), ram.memory, bar, executor)

        async def do(command: Command) -> None:
            outcome = gpu.execute(command)
            if isinstance(outcome, Coroutine):
                await outcome

        for command in (d.ctx_create(), d.create_blob(1, SIZE), d.map_blob(1, 0)):
            await do(command)
        blob = gpu.resources.get(ResourceId(1))
        assert isinstance(blob, HostBlob)
        for span in range(0, SIZE, PAGE):
            blob.contents().write(span, b"x")
        assert bar.allocated() == SIZE
        started = thread_time()
        await freeing(gpu, do)
        taken = thread_time() - started
        if freeing is not map_another:
            assert bar.allocated() == 0
        gpu.close()
        executor.close()
        bar.clear()
        ram.close()
        return taken

    return asyncio.run(test())


@pytest.mark.parametrize("freeing", [reset, unref])
@pytest.mark.parametrize("layout", Layout)
def test_a_large_blob_is_freed_in_a_thread(layout: Layout, freeing: Freeing) -> None:
    assert measure(layout, freeing) < MOST


def test_a_range_is_cleared_in_a_thread() -> None:
    measure(Layout.WINDOW, map_another)
