"""Answers that a daemon could give, for tests of how they are shown."""

from __future__ import annotations

from typing import Any

from vgpud.control import models


def info(**changes: Any) -> models.DaemonInfo:
    """A daemon."""
    values: dict[str, Any] = {
        "version": "0.1.0",
        "pid": 4711,
        "uptime_s": 11520.5,
        "config_file": "/etc/vgpud.toml",
        "log_level": "info",
        "devices": (),
    }
    return models.DaemonInfo(**(values | changes))


def device(name: str = "gpu0", **changes: Any) -> models.DeviceDetails:
    """A device with a guest at work."""
    values: dict[str, Any] = {
        "name": name,
        "socket": f"/run/vgpud/{name}.sock",
        "connected": True,
        "front_end_pid": 812,
        "layout": "window",
        "window": 256 << 20,
        "memory_limit": 1 << 30,
        "memory_used": 12 << 20,
        "buffers": "memfd",
        "render_node": None,
        "renderers": ("dma",),
        "slots": "frontend",
        "guest_pat": "auto",
        "kvm_mode": "svm",
        "kvm_reason": "AMD's KVM honours the guest's PAT",
        "outputs": (models.Output(scanout=0, width=1280, height=800, showing=(640, 480)),),
        "display": False,
        "resources": 7,
        "blobs": 3,
        "contexts": 1,
        "agent": None,
        "problems": (),
    }
    return models.DeviceDetails(**(values | changes))


def agent(**changes: Any) -> models.Agent:
    """A slot agent of gpu0."""
    values: dict[str, Any] = {
        "device": "gpu0",
        "pid": 900,
        "uid": 1000,
        "guest_phys_addr": 1 << 32,
        "first_slot": 8,
        "slot_count": 16,
        "flags": 8,
        "flag_accepted": False,
        "vm_setup": (),
        "kvm_mode": "forced-wb",
        "reason": "this kernel takes no flag",
    }
    return models.Agent(**(values | changes))


def blob(number: int = 5, **changes: Any) -> models.Blob:
    """A blob of a guest's, mapped."""
    values: dict[str, Any] = {
        "device": "gpu0",
        "blob": number,
        "origin": "guest",
        "kind": "host3d",
        "size": 1 << 20,
        "mapped": True,
        "offset": 0x10000,
        "guest_phys_addr": None,
        "map_info": "wc",
        "flags": 8,
        "reason": "as asked for",
    }
    return models.Blob(**(values | changes))


def slot(**changes: Any) -> models.Slot:
    """A slot that an agent has set."""
    values: dict[str, Any] = {
        "device": "gpu0",
        "owner": "agent",
        "slot": 8,
        "use": "bar",
        "flags": 8,
        "bar_offset": 0,
        "guest_phys_addr": 1 << 32,
        "memory_size": 256 << 20,
    }
    return models.Slot(**(values | changes))


def event(**changes: Any) -> models.Event:
    """Something that happened."""
    values: dict[str, Any] = {
        "sequence": 3,
        "time": 1_700_000_000.25,
        "kind": "slot.refused",
        "device": "gpu0",
        "resource": None,
        "message": "the agent refused a slot",
        "data": {"slot": 8, "flags": 8, "errno": 22},
    }
    return models.Event(**(values | changes))
