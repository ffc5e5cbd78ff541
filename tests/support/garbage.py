"""What only the garbage collector would free: frames, errors and buffers in a cycle."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType

from vgpud.memory import pages
from vgpud.memory.extents import Extents
from vgpud.memory.mapping import Mapping
from vgpud.native.spans import SpanList

BUFFERS = (Extents, SpanList, Mapping)
FRAMES = (FrameType, GeneratorType, CoroutineType, AsyncGeneratorType, BaseException)


@contextmanager
def no_garbage(kinds: tuple[type, ...] = BUFFERS + FRAMES) -> Iterator[None]:
    """Assert that nothing of some kinds that was made in the block is left to the garbage
    collector, which is off meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
        dropped = threading.Event()
        pages._freer.run(dropped.set)  # after what is dropped in its thread
        assert dropped.wait(20)
        before = _settled(kinds)
        gc.collect()
        freed = before.keys() - _alive(kinds).keys()
    finally:
        gc.enable()
    assert not freed, "\n".join(before[one] for one in freed)


def _settled(kinds: tuple[type, ...]) -> dict[int, str]:
    """What is alive once threads that free something have nothing left to do.

    A numpy array is unknown to the collector, so what it keeps alive is not in gc.garbage.
    """
    alive = _alive(kinds)
    for _ in range(100):
        time.sleep(0.01)
        now = _alive(kinds)
        if now.keys() == alive.keys():
            break
        alive = now
    return alive


def _alive(kinds: tuple[type, ...]) -> dict[int, str]:
    return {id(one): repr(one)[:200] for one in gc.get_objects() if isinstance(one, kinds)}
