"""Zeroed memory: small pages, made when they are touched, and freed in another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu import driver as d
from tests.gpu.machine import MIB, Machine
from tests.support.until import until
from vgpud.errors import OutOfMemory
from vgpud.gpu.display.capture import Capture
from vgpud.gpu.display.frame import Frame
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import Format, ResourceId, ScanoutId
from vgpud.memory import pages
from vgpud.memory.extents import Extents
from vgpud.memory.pages import LARGE, zeroed
from vgpud.native.arrays import address_of
from vgpud.unix.closer import Closer, Release

SHOT = Rect(0, 0, 1024, 1024)


def mapping(address: int) -> dict[str, str]:
    """What the kernel says of the mapping that an address is in; empty if there is none."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name.endswith(":"):
            found[name] = rest
            continue
        if found.get("inside"):
            return found
        start, end = (int(number, 16) for number in name.split("-"))
        found = {"inside": "yes"} if start <= address < end else {}
    return found if found.get("inside") else {}


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 5 * LARGE + 4097])
def test_it_is_zeros_that_can_be_written(size: int) -> None:
    array = zeroed(size)
    assert array.shape == (size,)
    assert array.dtype == np.uint8
    assert not array.any()
    array[:] = 7
    assert (array == 7).all()
    part = array[size // 2 :]
    del array
    assert (part == 7).all()


def test_what_the_host_does_not_have_is_refused() -> None:
    with pytest.raises(OutOfMemory):
        zeroed(1 << 60)
    with pytest.raises(OutOfMemory):
        zeroed(1 << 62)


def image() -> Extents:
    with Machine() as machine:
        machine.all(d.create_2d(1, 1024, 1024))
        return machine.gpu.resources.get(ResourceId(1)).contents()


def blob() -> Extents:
    with Machine(window=4 * MIB) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, 2 * MIB))
        return machine.gpu.resources.get(ResourceId(1)).contents()


def capture() -> NDArray[np.uint8]:
    return Capture((1024, 1024), Format.B8G8R8X8_UNORM, 1 << 30).pixels


def shadow() -> NDArray[np.uint8]:
    return Shadow(1024, 1024).pixels(SHOT)


def detached_frame() -> NDArray[np.uint8]:
    frame = Frame(ScanoutId(0), [(SHOT, np.zeros((1024, 1024, 4), np.uint8))])
    for _ in frame.detach():
        pass
    return frame._parts[0].pixels


@pytest.mark.parametrize(
    "make", [image, blob, capture, shadow, detached_frame], ids=lambda make: make.__name__
)
def test_what_a_guest_makes_has_small_pages_of_its_own(
    make: Callable[[], Extents | NDArray[np.uint8]],
) -> None:
    made = make()
    array = made.array if isinstance(made, Extents) else made
    assert array is not None
    assert "nh" in mapping(address_of(array) + array.nbytes // 2)["VmFlags:"].split()


def test_large_memory_is_freed_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []

    class Observed(Closer):
        def run(self, release: Release) -> None:
            def observed() -> None:
                release()
                freed.append(threading.get_ident())

            super().run(observed)

    monkeypatch.setattr(pages, "_freer", Observed())
    array = zeroed(9 * LARGE)
    array[:] = 1
    address, view = address_of(array), array[5:]
    del array
    assert not freed
    assert mapping(address)
    del view
    until(lambda: bool(freed))
    assert freed != [threading.get_ident()]
    assert not mapping(address)
