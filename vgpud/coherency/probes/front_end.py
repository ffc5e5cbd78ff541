"""What the /proc entry of a front-end's process tells of its VM.

`coherency.kvm_mode` says what it means. Other users' processes can be examined by root only, and
none from another PID namespace: what can't be seen is None, with the reason. Source: proc(5);
QEMU's documentation of -accel.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from vgpud.coherency.kvm_mode import HonorGuestPat

_KVM_VM: Final = "anon_inode:kvm-vm"
_DELETED: Final = " (deleted)"  # an executable that was replaced, as by an upgrade


@dataclass(frozen=True, slots=True)
class Peer:
    """A front-end's process.

    `program` is the file name of its executable, `kvm_vms` the KVM VMs that it has open, and
    `honor_guest_pat` what its command line says of that option of QEMU's: on, off, auto or unsaid.
    """

    pid: int
    program: str | None = None
    kvm_vms: int | None = None
    honor_guest_pat: HonorGuestPat = HonorGuestPat.UNSAID
    problem: str = ""

    @property
    def is_qemu(self) -> bool:
        """Whether it is QEMU's system emulator, by its executable's name."""
        name = self.program or ""
        return name.startswith("qemu-system-") or name == "qemu-kvm"


def probe(pid: int, proc: Path = Path("/proc")) -> Peer:
    """Return what can be seen of a process now. Raises nothing.

    QEMU connects its sockets before it opens KVM: the guest has to run.
    """
    if pid <= 0:
        return Peer(pid, problem="its process is in another PID namespace")
    entry = proc / str(pid)
    try:
        program = (entry / "exe").readlink().name.removesuffix(_DELETED)
        vms = sum(_is_vm(fd) for fd in (entry / "fd").iterdir())
        arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENOENT:
            reason = "there is no such process, or it is hidden (ProtectProc=, hidepid=)"
        return Peer(pid, problem=f"{error.filename}: {reason}")
    return Peer(pid, program, vms, _honor_guest_pat(arguments))


def _is_vm(fd: Path) -> bool:
    try:
        return str(fd.readlink()) == _KVM_VM
    except FileNotFoundError:  # Closed since it was listed.
        return False


def _honor_guest_pat(arguments: Sequence[str]) -> HonorGuestPat:
    """What every -accel kvm on a command line agrees on.

    QEMU takes the first that works: of two that differ, that may be either.
    """
    values = set()
    for option, value in pairwise(arguments):
        match option:
            case "-accel" | "--accel":
                properties = dict(_properties(value))
                if properties.get("accel") == "kvm":
                    values.add(properties.get("honor-guest-pat"))
            case "-readconfig" | "--readconfig":
                return HonorGuestPat.UNSAID  # There may be another in that file.
    if len(values) == 1:
        for known in (HonorGuestPat.ON, HonorGuestPat.OFF, HonorGuestPat.AUTO):
            if values == {known}:
                return known
    return HonorGuestPat.UNSAID


def _properties(value: str) -> Iterator[tuple[str, str]]:
    """`kvm,a=b` as pairs, the first one's name being understood; two commas are one in a value."""
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        name, separator, said = part.partition("=")
        if not separator:
            name, said = ("accel" if index == 0 else part), ("on" if index else part)
        yield name, said.replace("\0", ",")
