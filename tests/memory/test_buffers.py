"""Sources of blobs' memory: memory files, and what is said where dma-bufs can't be had.

What real drivers give is tried where there are some: tests/kernel/buffer_cases.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.memory.gpu_trees import erase, record
from vgpud.errors import HostError
from vgpud.memory.buffers import Buffer, BufferSource, MemfdSource
from vgpud.memory.gem import GemSource, unsuitable
from vgpud.memory.render_nodes import HostGpu, RenderNodes
from vgpud.memory.udmabuf import UdmabufSource
from vgpud.unix.fd import RESERVE, Fd

PAGE = 4096
RENDER = "/dev/dri/renderD128"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def few_files() -> Iterator[None]:
    """A limit at which any new descriptor is one of the reserve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVE + 3, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_memory_file_is_zeros_and_shared() -> None:
    source = MemfdSource()
    assert source.problem() is None
    buffer = source.allocate("test", 2 * PAGE)
    assert buffer.view.nbytes == 2 * PAGE
    assert not buffer.view.any()
    buffer.view[PAGE] = 7
    assert os.pread(buffer.fd.fileno(), 1, PAGE) == b"\x07"
    assert fcntl.fcntl(buffer.fd.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    assert buffer.lost() is None
    view = buffer.view
    buffer.close()
    assert view[PAGE] == 7  # the mapping is there for as long as somebody looks


def test_a_buffer_that_cannot_be_mapped_is_closed() -> None:
    before = open_files()
    with pytest.raises(HostError, match="mmap"):
        Buffer(Fd(os.open("/proc/self/status", os.O_RDONLY)), PAGE)
    assert open_files() == before


def test_the_reserve_of_descriptors_is_left_alone(few_files: None) -> None:
    before = open_files()
    with pytest.raises(HostError, match="LimitNOFILE") as caught:
        MemfdSource().allocate("test", PAGE)
    assert caught.value.errno == errno.EMFILE
    assert open_files() == before


def test_a_file_that_was_cut_off_is_lost() -> None:
    fd = Fd(os.memfd_create("test", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), PAGE)
    buffer = Buffer(fd, PAGE)
    os.ftruncate(fd.fileno(), 0)
    assert buffer.view[0] == 0
    assert buffer.lost() == "its memory is gone"
    buffer.close()


def test_why_there_is_no_udmabuf(tmp_path: Path) -> None:
    problem = UdmabufSource(tmp_path / "udmabuf").problem()
    assert problem is not None
    assert problem.endswith(
        "/udmabuf: No such file or directory; modprobe udmabuf (Linux 4.20 or newer)"
    )


def test_a_failing_udmabuf_leaves_nothing_open() -> None:
    before = open_files()
    source = UdmabufSource(Path("/dev/null"))  # takes none of the requests
    with pytest.raises(HostError, match="UDMABUF_CREATE of 0x1000 bytes at 0x0"):
        source.allocate("test", PAGE)
    assert "UDMABUF_CREATE" in str(source.problem())
    assert open_files() == before


@pytest.mark.parametrize(
    ("driver", "device", "why"),
    [
        ("vgem", "vgem", None),
        ("xe", "0000:00:02.0", None),
        ("xe", "0000:03:00.0", "video memory"),
        ("amdgpu", "0000:03:00.0", "video memory or in RAM"),
        ("i915", "0000:00:02.0", "write-back"),
        ("virtio_gpu", "virtio0", "write-back"),
        ("nouveau", "0000:03:00.0", "nothing is known"),
        (None, "0000:03:00.0", "nothing is known"),
    ],
)
def test_which_drivers_buffers_will_do(driver: str | None, device: str, why: str | None) -> None:
    said = unsuitable(HostGpu(f"/sys/devices/{device}", driver, ()))
    if why is None:
        assert said is None
    else:
        assert said is not None
        assert why in said


def refusal(source: BufferSource) -> str:
    """Why a source gives nothing; asked and tried it says the same, and nothing is left open."""
    before = open_files()
    with pytest.raises(HostError) as caught:
        source.allocate("test", PAGE)
    assert source.problem() == str(caught.value)
    assert open_files() == before
    return str(caught.value)


def test_without_a_gpu(tmp_path: Path) -> None:
    nodes = RenderNodes(tmp_path)
    assert "this host has no GPU" in refusal(GemSource(nodes))
    assert f"no GPU has {RENDER}" in refusal(GemSource(nodes, RENDER))


def test_with_one_that_will_not_do(tmp_path: Path) -> None:
    record(tmp_path, "pci0000:00/0000:00:02.0", "i915", "card0", "renderD128")
    nodes = RenderNodes(tmp_path)
    assert "0000:00:02.0 is not suitable, i915: it maps" in refusal(GemSource(nodes, RENDER))
    assert "0000:00:02.0 is not suitable, i915: it maps" in refusal(GemSource(nodes))


def test_any_gpu_that_will_do(tmp_path: Path) -> None:
    record(tmp_path, "pci0000:00/0000:00:02.0", "i915", "card0", "renderD128")
    record(tmp_path, "faux/vgem", "faux_driver", "card1", "renderD129")
    nodes = RenderNodes(tmp_path)
    assert GemSource(nodes).gpu() is nodes.find("/dev/dri/card1")
    with pytest.raises(HostError, match="not suitable"):
        GemSource(nodes, RENDER).gpu()


def test_a_render_node_alone_makes_no_buffers(tmp_path: Path) -> None:
    record(tmp_path, "faux/vgem", "faux_driver", "renderD128")
    assert "has no primary node" in refusal(GemSource(RenderNodes(tmp_path)))


def test_a_node_that_is_none(tmp_path: Path) -> None:
    record(tmp_path, "faux/vgem", "faux_driver", "card0", "renderD128")
    nodes = RenderNodes(tmp_path)
    said = refusal(GemSource(nodes, RENDER))  # the recorded node is a plain file
    assert "DRM_IOCTL" in said
    (tmp_path / "dev/dri/card0").unlink()
    assert "the GPU is gone" in refusal(GemSource(nodes, RENDER))


def test_a_node_of_somebody_else(other_user: Path) -> None:
    record(other_user, "faux/vgem", "faux_driver", "card0", "renderD128")
    (other_user / "dev/dri/card0").chmod(0)
    assert "add this user to the group of /dev/dri/card0" in refusal(
        GemSource(RenderNodes(other_user))
    )


def test_a_gpu_that_has_gone_and_come_back(tmp_path: Path) -> None:
    record(tmp_path, "faux/vgem", "faux_driver", "card0", "renderD128")
    nodes = RenderNodes(tmp_path)
    source = GemSource(nodes, RENDER)
    before = source.gpu()
    erase(tmp_path, "faux/vgem")
    nodes.refresh()
    assert "no GPU has" in refusal(source)
    record(tmp_path, "faux/vgem", "faux_driver", "card0", "renderD128")
    nodes.refresh()
    assert source.gpu() != before
