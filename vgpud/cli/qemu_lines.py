"""QEMU command lines that boot a guest on a device, as text to copy.

They have the options that a vhost-user front-end needs: a device of either kind, shared memory and
the chardev. Source: QEMU's docs/system/devices/virtio and docs/interop/vhost-user.rst, QEMU 11.1.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Line: TypeAlias = Callable[[Path], str]
"""A function that returns the command line for a vhost-user socket."""

_CONTINUED = " \\\n    "


def all_features(socket: Path) -> str:
    """Return the line for blobs in the BAR window, contexts and 2D; QEMU shows no picture."""
    return _command(
        socket,
        "vhost-user-test-device-pci,chardev=vgpu,virtio-id=16,num_vqs=2,vq_size=256,config_size=20",
        "none",
    )


def display(socket: Path) -> str:
    """Return the line for 2D on QEMU's display; QEMU offers no blobs and contexts on this device.

    QEMU shows this device only on displays with OpenGL, even for 2D.
    """
    return _command(socket, "vhost-user-gpu-pci,chardev=vgpu", "gtk,gl=on")


def _command(socket: Path, device: str, display: str) -> str:
    # A comma ends a value in QEMU's option syntax; a doubled one stands for a comma.
    chardev = "socket,id=vgpu,path=" + str(socket).replace(",", ",,")
    return _CONTINUED.join(
        [
            "qemu-system-x86_64 -accel kvm -accel tcg -cpu max -m 2G -vga none -serial mon:stdio",
            "-M q35,memory-backend=mem -object memory-backend-memfd,id=mem,size=2G,share=on",
            f"-chardev {shlex.quote(chardev)}",
            f"-device {device} -display {display}",
            "-drive file=guest.qcow2,if=virtio",
        ]
    )
