"""GPUs as recorded in /sys and /dev, below a directory."""

from __future__ import annotations

import shutil
from pathlib import Path


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


def erase(root: Path, device: str, *nodes: str) -> None:
    """Takes nodes of a device away again; with none named all of them, and the device."""
    place = root / "sys/devices" / device
    for node in nodes or [path.name for path in (place / "drm").iterdir()]:
        for link in (root / "sys/class/drm").glob(f"{node}*"):  # its connectors too
            link.unlink()
        (root / "dev/dri" / node).unlink()
        shutil.rmtree(place / "drm" / node)
    if not nodes:
        shutil.rmtree(place)
