"""Full collections of garbage: never by Python itself, and after sessions from time to time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

import pytest

from tests.support.until import until_async
from vgpud.daemon import garbage


class Knot:
    """An object in a cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_python_begins_no_full_collection() -> None:
    program = """
import gc
from vgpud.daemon import garbage
garbage.begin()
before = gc.get_stats()
kept = [[number] for number in range(300_000)]
after = gc.get_stats()
print(*(now["collections"] - then["collections"] for then, now in zip(before, after)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    young, _, full = map(int, ran.stdout.split())
    assert young > 0
    assert full == 0


def test_many_objects_are_not_collected_before_they_are_few() -> None:
    # In a process of its own, as `begin` changes it; the longest collection is what a guest with a
    # hundred thousand resources could make of it.
    program = """
import asyncio, gc, time, weakref
from vgpud.daemon import garbage

class Knot:
    def __init__(self):
        self.itself = self

async def test():
    garbage.PERIOD = 0.01
    garbage.begin()
    began, longest = [0.0], [0.0]
    def observe(phase, info):
        if phase == "start":
            began[0] = time.thread_time()
        elif info["generation"] == 2:
            longest[0] = max(longest[0], time.thread_time() - began[0])
    sessions = [0]
    collector = asyncio.create_task(garbage.collect_after_changes(lambda: sessions[0]))
    await asyncio.sleep(0)
    kept = [[[number], {number: None}] for number in range(400_000)]
    knot = weakref.ref(Knot())
    gc.callbacks.append(observe)
    sessions[0] += 1
    await asyncio.sleep(0.2)
    print(knot() is None, longest[0] > 0)
    kept.clear()
    for _ in range(500):
        await asyncio.sleep(0.01)
        if knot() is None:
            break
    print(knot() is None, longest[0] < 0.02)
    collector.cancel()

asyncio.run(test())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert ran.stdout.splitlines() == ["False False", "True True"]


def test_all_is_collected_after_a_change_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PERIOD", 0.01)
    sessions = [0]

    def gone(knot: weakref.ref[Knot]) -> bool:
        return knot() is None

    async def test() -> None:
        collector = asyncio.create_task(garbage.collect_after_changes(lambda: sessions[0]))
        knot = weakref.ref(Knot())
        await asyncio.sleep(0.05)
        assert not gone(knot)
        sessions[0] += 1
        await until_async(lambda: gone(knot))
        collector.cancel()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()
