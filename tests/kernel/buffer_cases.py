"""Buffers of real drivers: udmabuf, and vgem for a GPU, in the built host, whose kernel has both.

Run by name, in the guest: elsewhere most of this has nothing to stand on. That vgem maps its
buffers write-combining does not show there, as the processor is emulated.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.back_end_process import BackEndProcess
from tests.support.kvm_host import Poker, open_kvm
from vgpud.coherency.slot_policy import GuestPat, Layout
from vgpud.control.events import Events
from vgpud.control.models import Event
from vgpud.daemon.gpu_watch import GpuWatch
from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.memory.buffers import Buffer, BufferSource
from vgpud.memory.gem import GemSource
from vgpud.memory.mapping import canonical_address, map_shared
from vgpud.memory.render_nodes import HostGpu, RenderNodes
from vgpud.memory.udmabuf import UdmabufSource
from vgpud.microvm.boot import WINDOW_GPA
from vgpud.microvm.service import configuration
from vgpud.microvm.vmm import run_front_end
from vgpud.native.arrays import address_of
from vgpud.slots.local import LocalSlots
from vgpud.slots.memslots import Memslots
from vgpud.slots.table import SlotTable
from vgpud.unix.fd import Fd

PAGE = 4096
MIB = 1 << 20
RENDER = "/dev/dri/renderD128"
CARD = Path("/sys/class/drm/card0/uevent")
BAR = Gpa(0x4_0000)


def sources() -> dict[str, BufferSource]:
    nodes = RenderNodes()
    return {
        "udmabuf": UdmabufSource(),
        "gem": GemSource(nodes),
        "gem of a render node": GemSource(nodes, RENDER),
    }


@pytest.fixture(params=["udmabuf", "gem", "gem of a render node"])
def source(request: pytest.FixtureRequest) -> BufferSource:
    return sources()[request.param]


@pytest.fixture
def buffer(source: BufferSource) -> Iterator[Buffer]:
    made = source.allocate("test", MIB)
    yield made
    made.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_gpu_is_found_by_udev_too() -> None:
    [gpu] = RenderNodes().gpus
    assert (gpu.name, gpu.driver, gpu.render) == ("vgem", "vgem", RENDER)


def test_it_can_be_had(source: BufferSource) -> None:
    before = open_files()
    assert source.problem() is None
    assert open_files() == before


def test_a_buffer_is_zeros_and_a_dma_buf(buffer: Buffer) -> None:
    assert buffer.view.nbytes == MIB
    assert not buffer.view.any()
    assert Path(f"/proc/self/fd/{buffer.fd.fileno()}").readlink().name.startswith("dmabuf")
    assert buffer.lost() is None
    # What QEMU asks before it maps a file for SHMEM_MAP (qemu_ram_alloc_from_fd).
    assert os.lseek(buffer.fd.fileno(), 0, os.SEEK_END) == MIB
    assert not os.get_inheritable(buffer.fd.fileno())


def test_another_mapping_is_the_same_memory_and_is_known_for_it(buffer: Buffer) -> None:
    other = map_shared(buffer.fd, MIB)
    buffer.view[:] = np.arange(MIB, dtype=np.uint32).astype(np.uint8)
    assert (other == buffer.view).all()
    assert address_of(other) != address_of(buffer.view)
    assert canonical_address(address_of(other)) == canonical_address(address_of(buffer.view))


def test_the_memory_outlives_the_descriptor(source: BufferSource) -> None:
    before = open_files()
    buffer = source.allocate("test", MIB)
    view = buffer.view
    buffer.close()
    assert open_files() == before
    view[:] = 1
    assert view.sum(dtype="u8") == MIB


@pytest.mark.parametrize("size", [3 * PAGE, 16 * MIB])
def test_sizes(source: BufferSource, size: int) -> None:
    buffer = source.allocate("test", size)
    buffer.view[-1] = 1
    assert buffer.view.nbytes == size
    buffer.close()


@pytest.mark.parametrize("size", [1 << 32, 1 << 42])
def test_what_is_too_large_for_a_gpu_is_an_error(size: int) -> None:
    source = GemSource(RenderNodes())
    before = open_files()
    with pytest.raises(HostError) as caught:
        source.allocate("test", size)
    assert caught.value.errno == errno.EFBIG
    assert open_files() == before


def test_the_outputs_are_left_to_others() -> None:
    [gpu] = RenderNodes().gpus
    with GemSource(RenderNodes())._open(gpu), Fd(os.open(gpu.nodes[0], os.O_RDWR)) as other:
        # The first to open the node would be its master; now that is the second.
        assert _is_master(other)


def _is_master(node: Fd) -> bool:
    try:
        fcntl.ioctl(node.fileno(), 0x641E, 0)  # DRM_IOCTL_SET_MASTER: nothing to do if we are
    except OSError:
        return False
    return True


def test_kvm_takes_it_for_a_slot(buffer: Buffer) -> None:
    async def work(poker: Poker) -> None:
        with Memslots(poker.vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(1, 9), base=BAR))
            await slots.map(buffer.fd, 0, 0, MIB // 16)
            poker.poke(BAR + 0x1234, 0x42)
            assert buffer.view[0x1234] == 0x42
            await slots.unmap(0, MIB // 16)

    with open_kvm() as kvm:
        poker = Poker(kvm)
        asyncio.run(work(poker))
        poker.close()


@pytest.mark.parametrize(
    ("buffers", "agent"),
    [("udmabuf", False), ("gem", True)],
    ids=["udmabuf, front-end's slots", "gem, agent's slots"],
)
def test_a_guest_and_the_engine_share_it(buffers: str, agent: bool) -> None:
    config = configuration(GuestPat.AUTO, Layout.PER_BLOB)
    config = config.replace('name = "microvm"', f'name = "microvm"\nbuffers = "{buffers}"')
    if buffers == "gem":
        config = config.replace('"gem"', f'"gem"\nrender_node = "{RENDER}"')
    with BackEndProcess(config, with_agent=agent) as daemon:
        outcome = run_front_end(daemon.connection, agent=daemon.agent, width=16, height=8, rounds=1)
        assert daemon.end() == 0, daemon.log
    assert [slot.guest_phys_addr for slot in outcome.slots] == [
        WINDOW_GPA + index * PAGE for index in range(3)
    ]
    assert all(round_.dma.holds for round_ in outcome.rounds)
    assert len(outcome.rounds) == 1


def test_a_gpu_that_goes_takes_its_buffers_with_it() -> None:
    # The kernel announces what is written there; vgem itself can't go, as it is built in.
    heard: list[Event] = []

    both = asyncio.Event()

    def take(event: Event) -> None:
        heard.append(event)
        if len(heard) == 2:
            both.set()

    async def work() -> tuple[Buffer, Buffer]:
        events = Events()
        events.listen(take)
        watch = GpuWatch(events, users=lambda _: ["gpu0"])
        source = GemSource(watch.nodes, RENDER)
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(0.1)
        before = source.allocate("test", PAGE)
        CARD.write_text("remove")  # noqa: ASYNC240 - takes no time
        async with asyncio.timeout(30):
            await both.wait()
        task.cancel()
        await asyncio.wait([task])
        return before, source.allocate("test", PAGE)

    before, after = asyncio.run(work())
    assert [(event.kind, event.device) for event in heard] == [
        ("gpu.removed", "gpu0"),
        ("gpu.added", "gpu0"),
    ]
    assert "vgem" in heard[0].message
    lost = before.lost()
    assert lost is not None
    assert "its GPU, vgem (vgem, /dev/dri/card0" in lost
    assert after.lost() is None
    before.close()
    after.close()


def test_a_driver_that_is_not_the_one_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = RenderNodes()
    [gpu] = nodes.gpus
    other = HostGpu("/sys/devices/pci0000:00/0000:00:02.0", "xe", gpu.nodes, gpu.number)
    monkeypatch.setattr(nodes, "gpus", (other,))
    with pytest.raises(HostError, match="/dev/dri/card0 belongs to vgem now"):
        GemSource(nodes).allocate("test", PAGE)
