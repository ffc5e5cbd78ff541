"""GPUs as doctor shows them, by recorded /sys trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memory.gpu_trees import record
from vgpud.coherency.probes import drm as probe_drm
from vgpud.coherency.probes.drm import GpuFacts, GpuNode, probe


def nodes(*names: str) -> tuple[GpuNode, ...]:
    """Nodes that we may open."""
    return tuple(GpuNode(f"/dev/dri/{name}", True) for name in names)


def test_no_gpu(tmp_path: Path) -> None:
    assert probe(tmp_path) == ()


@pytest.mark.parametrize(
    ("device", "driver", "found", "allocation"),
    [
        ("pci0000:00/0000:00:02.0", "xe", "xe", "non-coherent pat_index"),
        ("pci0000:00/0000:00:02.0", "i915", "i915", "SET_PAT"),
        ("pci0000:00/0000:03:00.0", "amdgpu", "amdgpu", "USWC"),
        ("platform/vgem", None, "vgem", "dumb buffers"),
        ("faux/vgem", "faux_driver", "vgem", "dumb buffers"),
        ("pci0000:00/0000:00:02.0/virtio0", "virtio_gpu", "virtio_gpu", None),
    ],
)
def test_a_gpu(
    tmp_path: Path, device: str, driver: str | None, found: str, allocation: str | None
) -> None:
    record(tmp_path, device, driver, "card0", "renderD128")
    [gpu] = probe(tmp_path)
    assert gpu.device == Path(device).name
    assert gpu.driver == found
    assert gpu.nodes == nodes("card0", "renderD128")
    if allocation is None:
        assert gpu.non_snooping is None
    else:
        assert gpu.non_snooping is not None
        assert allocation in gpu.non_snooping


def test_several_gpus(tmp_path: Path) -> None:
    record(tmp_path, "pci0000:00/0000:00:02.0", "i915", "card1", "renderD128")
    record(tmp_path, "pci0000:00/0000:03:00.0", "amdgpu", "card0", "renderD129")
    record(tmp_path, "pci0000:00/0000:04:00.0", "ast", "card2")
    assert [(gpu.driver, gpu.nodes) for gpu in probe(tmp_path)] == [
        ("amdgpu", nodes("card0", "renderD129")),
        ("i915", nodes("card1", "renderD128")),
        ("ast", nodes("card2")),
    ]


def test_nodes_of_others(other_user: Path) -> None:
    record(other_user, "pci0000:00/0000:00:02.0", "xe", "card0", "renderD128")
    (other_user / "dev/dri/card0").chmod(0o400)
    (other_user / "dev/dri/renderD128").unlink()
    assert probe(other_user) == (
        GpuFacts(
            "0000:00:02.0",
            "xe",
            (GpuNode("/dev/dri/card0", False), GpuNode("/dev/dri/renderD128", False)),
            probe_drm.NON_SNOOPING["xe"],
        ),
    )
