"""The list of GPUs: what is found, refreshes after changes, and udev compared with /sys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.memory.gpu_trees import erase, record
from vgpud.memory.render_nodes import GpuChanges, RenderNodes, by_links, by_udev

INTEL = "pci0000:00/0000:00:02.0"
CARD = "pci0000:00/0000:03:00.0"


def drivers(nodes: RenderNodes) -> list[str | None]:
    return [gpu.driver for gpu in nodes.gpus]


def test_no_gpu(tmp_path: Path) -> None:
    nodes = RenderNodes(tmp_path)
    assert nodes.gpus == ()
    assert nodes.find("/dev/dri/renderD128") is None
    assert nodes.refresh() == GpuChanges((), ())


def test_a_gpu_and_its_nodes(tmp_path: Path) -> None:
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    record(tmp_path, CARD, "ast", "card1")
    nodes = RenderNodes(tmp_path)
    xe, ast = nodes.gpus
    assert (xe.name, xe.driver, xe.primary, xe.render) == (
        "0000:00:02.0",
        "xe",
        "/dev/dri/card0",
        "/dev/dri/renderD128",
    )
    assert (ast.primary, ast.render) == ("/dev/dri/card1", None)
    assert str(xe) == "0000:00:02.0 (xe, /dev/dri/card0, /dev/dri/renderD128)"
    for name in xe.nodes:
        assert nodes.find(name) is xe
        assert nodes.path(name).exists()
    assert nodes.find("/dev/dri/card1") is ast
    assert nodes.find("/dev/dri/card2") is None
    assert xe in nodes
    assert ast in nodes


def test_a_gpu_by_a_link(tmp_path: Path) -> None:
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    link = tmp_path / "dev/dri/by-path/pci-0000:00:02.0-render"
    link.parent.mkdir()
    link.symlink_to("../renderD128")
    nodes = RenderNodes(tmp_path)
    found = nodes.find("/dev/dri/by-path/pci-0000:00:02.0-render")
    assert found is not None
    assert found in nodes


def test_one_comes_and_another_goes(tmp_path: Path) -> None:
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    nodes = RenderNodes(tmp_path)
    [xe] = nodes.gpus
    record(tmp_path, CARD, "amdgpu", "card1", "renderD129")
    changes = nodes.refresh()
    assert changes.removed == ()
    [amd] = changes.added
    assert nodes.gpus == (xe, amd)
    assert nodes.refresh() == GpuChanges((), ())
    erase(tmp_path, INTEL)
    assert nodes.refresh(["card0", "renderD128"]) == GpuChanges((xe,), ())
    assert xe not in nodes
    assert amd in nodes


def test_one_that_comes_back_is_another(tmp_path: Path) -> None:
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    nodes = RenderNodes(tmp_path)
    [before] = nodes.gpus
    erase(tmp_path, INTEL)
    nodes.refresh()
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    [after] = nodes.refresh().added
    assert after.nodes == before.nodes
    assert before not in nodes
    assert after in nodes


@pytest.mark.parametrize("lost", ["card0", "renderD128"])
def test_also_if_it_was_back_before_anybody_looked(tmp_path: Path, lost: str) -> None:
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    record(tmp_path, CARD, "amdgpu", "card1", "renderD129")
    nodes = RenderNodes(tmp_path)
    before, other = nodes.gpus
    changes = nodes.refresh([lost, "card7"])
    assert changes.removed == (before,)
    assert [gpu.nodes for gpu in changes.added] == [before.nodes]
    assert before not in nodes
    assert other in nodes


def test_another_driver_makes_another_gpu(tmp_path: Path) -> None:
    record(tmp_path, INTEL, "i915", "card0", "renderD128")
    nodes = RenderNodes(tmp_path)
    erase(tmp_path, INTEL)
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    changes = nodes.refresh()
    assert [gpu.driver for gpu in changes.removed] == ["i915"]
    assert [gpu.driver for gpu in changes.added] == ["xe"]


def test_nodes_that_come_one_by_one_are_one_gpu(tmp_path: Path) -> None:
    record(tmp_path, INTEL, "xe", "renderD128")
    nodes = RenderNodes(tmp_path)
    [half] = nodes.gpus
    erase(tmp_path, INTEL)
    record(tmp_path, INTEL, "xe", "card0", "renderD128")
    assert nodes.refresh() == GpuChanges((), ())
    [whole] = nodes.gpus
    assert whole.primary == "/dev/dri/card0"
    assert half in nodes
    # What is left of one that is going is no longer what it was.
    erase(tmp_path, INTEL, "card0")
    changes = nodes.refresh()
    assert changes.removed == (whole,)
    assert half not in nodes


@pytest.mark.parametrize("subsystem", ["drm", "block", "misc", "tty"])
def test_udev_and_the_links_of_sys_agree(subsystem: str) -> None:
    # Most hosts that run this have no GPU, but every one has disks or terminals with drivers.
    names = re.compile(r"(card|renderD|vd|sd|nvme|loop|tty)\w*|kvm|null")
    by_name = sorted(by_udev(subsystem, names), key=lambda found: found.path)
    assert by_name == sorted(by_links(Path("/"), subsystem, names), key=lambda found: found.path)
    if subsystem == "misc" and Path("/dev/kvm").exists():
        assert "/dev/kvm" in {found.path for found in by_name}
