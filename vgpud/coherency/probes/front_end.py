"""Facts about a front-end's VM, from the /proc entry of its process, for `coherency.kvm_mode`.

Other users' processes can be examined by root only, and those of another PID namespace not at all:
a fact that can't be seen is None, with the reason. Source: proc(5); QEMU's documentation of -accel.
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
class FrontEndFacts:
    """A front-end's process.

    `program` is the file name of its executable, `kvm_vms` the number of KVM VMs that it has open,
    and `honor_guest_pat` the value of that option of QEMU on its command line. `problem` says why a
    fact is not known.
    """

    pid: int
    program: str | None = None
    kvm_vms: int | None = None
    honor_guest_pat: HonorGuestPat = HonorGuestPat.UNSAID
    problem: str = ""

    @property
    def is_qemu(self) -> bool:
        """Whether it is QEMU's system emulator, by the name of its executable."""
        name = self.program or ""
        return name.startswith("qemu-system-") or name == "qemu-kvm"


def probe(pid: int, proc: Path = Path("/proc")) -> FrontEndFacts:
    """Return what can be seen of a process now. Raises nothing.

    QEMU connects its sockets before it opens KVM, so all facts are there only when the guest runs.
    """
    if pid <= 0:
        return FrontEndFacts(pid, problem="its process is in another PID namespace")
    entry = proc / str(pid)
    try:
        program = (entry / "exe").readlink().name.removesuffix(_DELETED)
        vms = sum(_is_vm(fd) for fd in (entry / "fd").iterdir())
        arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENOENT:
            reason = "there is no such process, or it is hidden (ProtectProc=, hidepid=)"
        return FrontEndFacts(pid, problem=f"{error.filename}: {reason}")
    return FrontEndFacts(pid, program, vms, _honor_guest_pat(arguments))


def _is_vm(fd: Path) -> bool:
    try:
        return str(fd.readlink()) == _KVM_VM
    except FileNotFoundError:  # It was closed after it was listed.
        return False


def _honor_guest_pat(arguments: Sequence[str]) -> HonorGuestPat:
    """Return the value that every -accel kvm on a command line has, or else UNSAID.

    QEMU takes the first -accel that works: if two differ, it may be either.
    """
    values = set()
    for option, value in pairwise(arguments):
        match option:
            case "-accel" | "--accel":
                properties = dict(_properties(value))
                if properties.get("accel") == "kvm":
                    values.add(properties.get("honor-guest-pat"))
            case "-readconfig" | "--readconfig":
                return HonorGuestPat.UNSAID  # That file may have another -accel.
    if len(values) == 1:
        for known in (HonorGuestPat.ON, HonorGuestPat.OFF, HonorGuestPat.AUTO):
            if values == {known}:
                return known
    return HonorGuestPat.UNSAID


def _properties(value: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `kvm,a=b`; the first name may be left out, ",," is a comma in a value."""
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        name, separator, text = part.partition("=")
        if not separator:
            name, text = ("accel" if index == 0 else part), ("on" if index else part)
        yield name, text.replace("\0", ",")
