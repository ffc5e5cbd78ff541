"""GPUs by recorded /sys trees, and the two ways to find devices against each other on this host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vgpud.host import probe_drm
from vgpud.host.probe_drm import Gpu, GpuNode, by_links, by_udev, probe


def record(root: Path, device: str, driver: str | None, *nodes: str) -> None:
    """A device with these nodes in /sys and /dev below `root`, its driver being bound to it."""
    place = root / "sys/devices" / device
    place.mkdir(parents=True)
    if driver is not None:
        bound = root / "sys/bus/pci/drivers" / driver
        bound.mkdir(parents=True, exist_ok=True)
        (place / "driver").symlink_to(bound)
    (root / "sys/class/drm").mkdir(parents=True, exist_ok=True)
    (root / "dev/dri").mkdir(parents=True, exist_ok=True)
    for minor, node in enumerate(nodes):
        (place / "drm" / node).mkdir(parents=True)
        (place / "drm" / node / "device").symlink_to(place)
        (root / "sys/class/drm" / node).symlink_to(place / "drm" / node)
        (root / "dev/dri" / node).touch()
        (place / "drm" / node / "uevent").write_text(
            f"MAJOR=226\nMINOR={minor}\nDEVNAME=dri/{node}\nDEVTYPE=drm_minor\n"
        )
    # A connector: of subsystem drm as well, but without a node.
    connector = place / "drm" / nodes[0] / f"{nodes[0]}-HDMI-A-1"
    connector.mkdir()
    (connector / "uevent").write_text("DEVTYPE=drm_connector\n")
    (root / "sys/class/drm" / connector.name).symlink_to(connector)


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
        Gpu(
            "0000:00:02.0",
            "xe",
            (GpuNode("/dev/dri/card0", False), GpuNode("/dev/dri/renderD128", False)),
            probe_drm.NON_SNOOPING["xe"],
        ),
    )


@pytest.mark.parametrize("subsystem", ["drm", "block", "misc", "tty"])
def test_udev_and_the_links_of_sys_agree(subsystem: str) -> None:
    # Most hosts that run this have no GPU, but every one has disks or terminals with drivers.
    names = re.compile(r"(card|renderD|vd|sd|nvme|loop|tty)\w*|kvm|null")
    by_name = sorted(by_udev(subsystem, names), key=lambda found: found.path)
    assert by_name == sorted(by_links(Path("/"), subsystem, names), key=lambda found: found.path)
    if subsystem == "misc" and Path("/dev/kvm").exists():
        assert "/dev/kvm" in {found.path for found in by_name}
