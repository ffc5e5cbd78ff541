"""The QEMU command lines: fit for a shell; tests/test_docs.py compares them with the docs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vgpud.cli import qemu_lines

SOCKET = Path("/run/vgpud/gpu0.sock")
BOTH = [qemu_lines.all_features, qemu_lines.display]


def options(command: str) -> dict[str, list[str]]:
    """The values of each option, as a shell passes them."""
    script = f"set -- {command}\nprintf '%s\\0' \"$@\""
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    program, *words = output.removesuffix("\0").split("\0")
    assert program == "qemu-system-x86_64"
    found: dict[str, list[str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        assert option.startswith("-")
        found.setdefault(option, []).append(value)
    return found


@pytest.mark.parametrize(
    ("line", "device", "display"),
    [
        (
            qemu_lines.all_features(SOCKET),
            "vhost-user-test-device-pci,chardev=vgpu,virtio-id=16,num_vqs=2,vq_size=256,config_size=20",
            "none",
        ),
        (qemu_lines.display(SOCKET), "vhost-user-gpu-pci,chardev=vgpu", "gtk,gl=on"),
    ],
)
def test_a_line_has_what_a_front_end_needs(line: str, device: str, display: str) -> None:
    found = options(line)
    assert found["-device"] == [device]
    assert found["-display"] == [display]
    assert found["-chardev"] == [f"socket,id=vgpu,path={SOCKET}"]
    assert found["-object"] == ["memory-backend-memfd,id=mem,size=2G,share=on"]
    assert found["-m"] == ["2G"]
    assert found["-M"] == ["q35,memory-backend=mem"]


@pytest.mark.parametrize("line", BOTH)
def test_odd_paths_survive_the_shell_and_qemu(line: qemu_lines.Line) -> None:
    found = options(line(Path("/run/a b/it's,so")))
    assert found["-chardev"] == ["socket,id=vgpu,path=/run/a b/it's,,so"]
