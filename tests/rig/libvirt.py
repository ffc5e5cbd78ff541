"""One stock guest that libvirt starts, together with the vhost-user back-end that it chooses.

It owns `virt-qemu-run` (libvirt's QEMU driver without its daemon) and all that it keeps on disk, so
that nothing of this machine's libvirt is touched. The back-end is only a command here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket as sockets
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from tests.rig.build import Rig
from tests.rig.qemu import KERNEL_ARGUMENTS, Guest

QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
# What libvirt would have of a host that it manages: a user for QEMU, mandatory access control,
# cgroups and mount namespaces.
QEMU_CONF: Final = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
"""
# Where QEMU's users put descriptions of back-ends; here only the one that the test made.
DESCRIPTIONS: Final = "/etc/qemu/vhost-user"
# /sys is where libvirt finds the processors.
ENTER: Final = (
    f'mount -t sysfs sys /sys && mkdir -p {DESCRIPTIONS} && mount --bind "$1" {DESCRIPTIONS}'
    ' && shift && exec "$@"'
)
# libvirt asks QEMU for its capabilities first, which takes four seconds.
START_S: Final = 60.0
STOP_S: Final = 20.0


class Domain(Guest):
    """A guest from `virsh start` to `virsh destroy`, so to say; use it as a context manager."""

    def __init__(self, rig: Rig, xml: str, description: Path, program: Sequence[str]) -> None:
        """Say what to boot; entering the context starts it.

        `xml` describes the domain; what a test machine lacks of it is replaced (`bootable`).
        `description` is the back-end's vhost-user JSON file, installed under its own name, beside
        those that QEMU brings; its `binary` becomes `program`, run outside the chroot.
        """
        super().__init__(rig, "gpu")
        self._xml = xml
        self._description = description
        self._program = program

    def _command(self) -> list[str]:
        root, installed = self._scratch / "libvirt", self._scratch / "vhost-user"
        (root / "etc").mkdir(parents=True)
        (root / "etc/qemu.conf").write_text(QEMU_CONF)
        installed.mkdir()
        entry = json.loads(self._description.read_text())
        entry["binary"] = str(self._back_end_script())
        (installed / self._description.name).write_text(json.dumps(entry))
        domain = self._scratch / "domain.xml"
        domain.write_text(bootable(self._xml, self._rig, self._scratch))
        self._listener = sockets.socket(sockets.AF_UNIX)
        self._listener.bind(str(self._scratch / "console"))
        self._listener.listen(1)
        # Where SIGTERM has it destroy the domain, SIGKILL would leave QEMU behind.
        run = ("setpriv", "--pdeathsig", "TERM", "virt-qemu-run", "-r", str(root), str(domain))
        return self._rig.chroot.command("sh", "-c", ENTER, "sh", str(installed), *run)

    def _back_end_script(self) -> Path:
        """A program in the chroot that is ours outside: our own root shows in /proc there."""
        script = self._scratch / "vhost-user-vgpu"
        program = shlex.join(self._program)
        script.write_text(
            f'#!/bin/sh\necho "$$ $*" >>{self._scratch}/calls\n'
            f'exec chroot /proc/{os.getpid()}/root {program} "$@"\n'
        )
        script.chmod(0o755)
        return script

    def _open_console(self, stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stack.callback(stream.close)
        stack.callback(self._listener.close)
        console = self._accept()
        stack.callback(console.close)
        into = console.makefile("wb")
        stack.callback(into.close)
        return into, console.makefile("rb")

    def _accept(self) -> sockets.socket:
        """QEMU's end of the serial line, as soon as libvirt has started it."""
        self._listener.settimeout(0.2)
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self._listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is None and time.monotonic() < deadline:
                    continue
            self._process.kill()
            assert self._process.stderr is not None
            told = self._process.stderr.read().decode(errors="replace")
            raise AssertionError(f"libvirt did not start the domain\n{told}\n{self.log}")

    @property
    def log(self) -> str:
        """What libvirt and QEMU wrote into the domain's log."""
        logs = sorted((self._scratch / "libvirt/log/qemu").glob("*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    @property
    def back_end_calls(self) -> list[list[str]]:
        """The arguments that libvirt called the back-end with, call by call."""
        return [words[1:] for words in self._calls()]

    @property
    def back_end_pid(self) -> int:
        """The process of the last of those calls."""
        return int(self._calls()[-1][0])

    def _calls(self) -> list[list[str]]:
        calls = self._scratch / "calls"
        return [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        [file] = [
            path
            for path in (self._scratch / "libvirt/run/qemu").glob("*.pid")
            if path.name != "driver.pid" and "vhost-user" not in path.name
        ]
        return int(file.read_text())

    def destroy(self) -> int:
        """Destroy the domain, and return the exit status of virt-qemu-run."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_S)

    def kill(self) -> None:
        """End everything, whatever state it is in."""
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.destroy()
                return
            for path in (self._scratch / "libvirt/run/qemu").glob("*.pid"):
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _reap(self) -> None:
        self.kill()


def bootable(xml: str, rig: Rig, scratch: Path) -> str:
    """The domain, with what the rig has in place of what a host would have.

    The processor is emulated, the kernel and its initramfs are loaded directly instead of from a
    disk, and the serial line and QMP are on sockets in `scratch`. All else is as it was.
    """
    domain = ET.fromstring(xml)
    domain.set("type", "qemu")
    _child(domain, "vcpu").text = "1"
    system, devices = _child(domain, "os"), _child(domain, "devices")
    for tag, text in (
        ("kernel", rig.inside(rig.vmlinux)),
        ("initrd", rig.inside(rig.initrd)),
        ("cmdline", KERNEL_ARGUMENTS),
    ):
        ET.SubElement(system, tag).text = text
    for parent, tag in ((domain, "cpu"), (devices, "disk")):
        for child in parent.findall(tag):
            parent.remove(child)
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="connect", path=str(scratch / "console"))
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    line = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for value in ("-qmp", f"unix:{scratch / 'qmp'},server=on,wait=off"):
        ET.SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", value=value)
    return ET.tostring(domain, encoding="unicode")


def _child(parent: Any, tag: str) -> Any:
    child = parent.find(tag)
    return ET.SubElement(parent, tag) if child is None else child
