"""Facts about a front-end's VM, from the /proc entry of its process, for `coherency.kvm_mode`.

Other users' processes can be examined by root only, and those of another PID namespace not at all:
a fact that can't be seen is None, with the reason. Source: proc(5); QEMU's documentation of -accel.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from vgpud.coherency.kvm_mode import HonorGuestPat

MAX_FILES: Final = 1 << 20
"""Descriptors that are looked at, more than a process may have by default (fs.nr_open)."""
MAX_ARGUMENTS: Final = 64 << 10
"""Bytes of a command line that are looked at; QEMU's have a few."""
_START_TIME: Final = 19  # of the fields after the program's name
_KVM_VM: Final = "anon_inode:kvm-vm"
_KVM_VFIO: Final = "anon_inode:kvm-vfio"
_QEMU: Final = re.compile(r"qemu-system-.+|qemu-kvm|qemu|kvm|kvm-spice")
"""The names of QEMU in distributions: kvm is Proxmox's, qemu-kvm is Red Hat's."""
_WRAPPED: Final = re.compile(r"\.+(.+?)(?:-wrapped_*)+")
"""A program behind a script of that name, as Nix's wrapProgram calls it, once or several times."""
_DELETED: Final = " (deleted)"  # an executable that was replaced, as by an upgrade


@dataclass(frozen=True, slots=True)
class FrontEndFacts:
    """A front-end's process.

    `program` is the file name of its executable, `kvm_vms` the number of KVM VMs that it has open,
    `honor_guest_pat` the value of that option of QEMU on its command line, and `vfio` whether KVM
    has been told of a device that is assigned to one of the VMs. `problem` says why a fact is not
    known.
    """

    pid: int
    program: str | None = None
    kvm_vms: int | None = None
    honor_guest_pat: HonorGuestPat = HonorGuestPat.UNSAID
    vfio: bool = False
    problem: str = ""
    incomplete: bool = False
    """Whether it is still to be examined, or has descriptors that were not looked at, and no VM
    among the others."""

    @property
    def is_qemu(self) -> bool:
        """Whether it is QEMU's system emulator, by the name of its executable."""
        return bool(_QEMU.fullmatch(_WRAPPED.sub(r"\1", self.program or "")))


def probe(pid: int, proc: Path = Path("/proc"), *, limit: int = MAX_FILES) -> FrontEndFacts:
    """Return what can be seen of a process now, by its first `limit` descriptors. Raises nothing.

    QEMU connects its sockets before it opens KVM, so all facts are there only when the guest runs.
    """
    if pid <= 0:
        return FrontEndFacts(pid, problem="its process is in another PID namespace")
    entry = proc / str(pid)
    try:
        program = (entry / "exe").readlink().name.removesuffix(_DELETED)
        vms, vfio, complete = _look(entry / "fd", limit)
        arguments = _arguments(entry / "cmdline")
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENOENT:
            reason = "there is no such process, or it is hidden (ProtectProc=, hidepid=)"
        return FrontEndFacts(pid, problem=f"{error.filename}: {reason}")
    if not vms and not complete:
        problem = f"it has more than {limit} open files, which are being examined"
        return FrontEndFacts(pid, program, problem=problem, incomplete=True)
    return FrontEndFacts(pid, program, vms, _honor_guest_pat(arguments), vfio)


def start_time(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Return when a process was started, in clock ticks since boot: it tells it from a later one.

    None if there is none, or it is hidden.
    """
    try:
        # The name of the program, in parentheses, may have spaces and parentheses itself.
        fields = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[_START_TIME])
    except (OSError, IndexError, ValueError):
        return None


def _look(directory: Path, limit: int) -> tuple[int, bool, bool]:
    """Return the number of VMs among the first descriptors, whether one of them has an assigned
    device, and whether those are all descriptors."""
    vms, vfio = 0, False
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number == limit:
                return vms, vfio, False
            try:
                name = str(Path(entry.path).readlink())
            except FileNotFoundError:  # It was closed after it was listed.
                continue
            vms += name == _KVM_VM
            vfio |= name == _KVM_VFIO
    return vms, vfio, True


def _arguments(path: Path) -> list[str]:
    with path.open("rb") as file:
        data = file.read(MAX_ARGUMENTS + 1)
    if len(data) > MAX_ARGUMENTS:
        return ["-readconfig", ""]  # there may be more of them, with any option
    return data.decode(errors="replace").split("\0")


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
