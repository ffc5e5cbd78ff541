"""Facts about front-end processes: real ones with and without KVM, recorded ones, real QEMUs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.rig.build import Rig
from tests.rig.chroot import Chroot, cache_directory
from tests.support.kvm_host import open_kvm
from vgpud.coherency.kvm_mode import HonorGuestPat
from vgpud.coherency.probes.front_end import FrontEndFacts, probe, start_time
from vgpud.unix.credentials import peer_credentials

PATIENCE = 20.0

# Opens VMs, connects, and goes on when it is told to.
CLIENT = """
import fcntl, os, socket, sys
kvm = os.open("/dev/kvm", os.O_RDWR) if int(sys.argv[2]) else None
vms = [fcntl.ioctl(kvm, 0xAE01, 0) for _ in range(int(sys.argv[2]))]
with socket.socket(socket.AF_UNIX) as front_end:
    front_end.connect(sys.argv[1])
    front_end.recv(1)
"""

Connect = Callable[[Sequence[str]], socket.socket]


@pytest.fixture
def connect(short_directory: Path) -> Iterator[Connect]:
    """Starts a program that connects to a socket of ours, and returns our end."""
    path = short_directory / "peer.sock"
    started = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)

        def start(command: Sequence[str]) -> socket.socket:
            process = subprocess.Popen(
                [word.replace("SOCKET", str(path)) for word in command],
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
            )
            connection, _ = listener.accept()
            started.append((process, connection))
            return connection

        yield start
    for process, connection in started:
        connection.close()
        process.kill()
        process.wait()
    path.unlink()


def test_ourselves() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_credentials(ours).pid == os.getpid()
    program = Path("/proc/self/exe").readlink().name
    assert probe(os.getpid()) == FrontEndFacts(os.getpid(), program, 0)


@pytest.mark.parametrize("vms", [0, 1, 2])
def test_a_process_with_vms(connect: Connect, vms: int) -> None:
    if vms:
        with open_kvm():
            pass
    connection = connect([sys.executable, "-c", CLIENT, "SOCKET", str(vms)])
    found = probe(peer_credentials(connection).pid)
    assert (found.kvm_vms, found.problem, found.is_qemu) == (vms, "", False)


def test_one_that_has_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    found = probe(process.pid)
    assert found.kvm_vms is None
    assert found.problem.startswith(f"/proc/{process.pid}/exe: there is no such process, or")


def test_one_of_another_namespace() -> None:
    assert probe(0) == FrontEndFacts(0, problem="its process is in another PID namespace")


def test_one_of_another_user(other_user: Path) -> None:
    found = probe(1)
    assert found.kvm_vms is None
    assert found.problem == "/proc/1/exe: Permission denied"


def recorded(proc: Path, exe: str, fds: Sequence[str], arguments: Sequence[str]) -> FrontEndFacts:
    """What is seen of a process that looks so in /proc."""
    entry = proc / "7"
    (entry / "fd").mkdir(parents=True)
    (entry / "exe").symlink_to(exe)
    for number, target in enumerate(fds):
        (entry / "fd" / str(number)).symlink_to(target)
    (entry / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in arguments))
    return probe(7, proc)


@pytest.mark.parametrize(
    ("exe", "is_qemu"),
    [
        ("/usr/bin/qemu-system-x86_64", True),
        ("/usr/bin/qemu-system-x86_64 (deleted)", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/kvm", True),
        ("/usr/bin/kvm (deleted)", True),
        ("/usr/bin/qemu", True),
        ("/nix/store/0x-qemu-10.1/bin/.qemu-system-x86_64-wrapped", True),
        ("/nix/store/0x-qemu-10.1/bin/.qemu-system-x86_64-wrapped_", True),
        ("/nix/store/0x-qemu-10.1/bin/..qemu-kvm-wrapped-wrapped (deleted)", True),
        ("/nix/store/0x-crosvm/bin/.crosvm-wrapped", False),
        ("/usr/bin/lkvm", False),
        ("/usr/bin/kvmtool", False),
        ("/usr/bin/qemu-img", False),
        ("/usr/bin/qemu-x86_64", False),
        ("/usr/bin/qemu-storage-daemon", False),
        ("/usr/sbin/libvirtd", False),
        ("/home/qemu-system-x86_64/crosvm", False),
    ],
)
def test_what_is_qemu(tmp_path: Path, exe: str, is_qemu: bool) -> None:
    found = recorded(tmp_path, exe, [], [])
    assert found.is_qemu is is_qemu
    assert found.program == Path(exe.removesuffix(" (deleted)")).name


def test_only_vms_are_counted(tmp_path: Path) -> None:
    fds = ["/dev/null", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "/dev/kvm", "socket:[7]"]
    found = recorded(tmp_path, "/q", fds, [])
    assert (found.kvm_vms, found.vfio) == (1, False)


def test_an_assigned_device_is_seen(tmp_path: Path) -> None:
    found = recorded(tmp_path, "/q", ["anon_inode:kvm-vfio", "anon_inode:kvm-vm"], [])
    assert (found.kvm_vms, found.vfio) == (1, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "unsaid"),
        ("-enable-kvm", "unsaid"),
        ("-accel kvm", "unsaid"),
        ("-accel kvm,honor-guest-pat=on", "on"),
        ("--accel kvm,honor-guest-pat=on", "on"),
        ("-accel accel=kvm,honor-guest-pat=on", "on"),
        ("-accel kernel-irqchip=off,honor-guest-pat=off,accel=kvm", "off"),
        ("-accel kvm,honor-guest-pat=auto", "auto"),
        ("-accel kvm,honor-guest-pat=on,honor-guest-pat=off", "off"),
        ("-accel kvm,honor-guest-pat=on -accel tcg", "on"),
        ("-accel tcg -accel kvm,honor-guest-pat=on", "on"),
        # Of two, the second is taken where the first does not work.
        ("-accel kvm,honor-guest-pat=on -accel kvm", "unsaid"),
        ("-accel kvm,honor-guest-pat=on -accel kvm,honor-guest-pat=off", "unsaid"),
        ("-accel kvm,honor-guest-pat=on -accel kvm,honor-guest-pat=on", "on"),
        ("-accel kvm,honor-guest-pat=on -readconfig more.cfg", "unsaid"),
        # Not that option, or not KVM's, or no value of it.
        ("-accel tcg,honor-guest-pat=on", "unsaid"),
        ("-accel honor-guest-pat=on", "unsaid"),
        ("-accel kvm,device=/x,,honor-guest-pat=on", "unsaid"),
        ("-accel kvm,honor-guest-pat=maybe", "unsaid"),
        ("-accel kvm,honor-guest-pat=ON", "unsaid"),
        ("-name kvm,honor-guest-pat=on", "unsaid"),
        ("-append -accel=kvm,honor-guest-pat=on", "unsaid"),
        ("accel kvm,honor-guest-pat=on", "unsaid"),
        ("-accel", "unsaid"),
    ],
)
def test_what_qemu_was_told(tmp_path: Path, options: str, told: str) -> None:
    arguments = ["qemu-system-x86_64", *options.split()]
    assert recorded(tmp_path, "/qemu-system-x86_64", [], arguments).honor_guest_pat == told


@pytest.mark.guest
@pytest.mark.parametrize(
    ("accel", "vms", "told"),
    [("tcg", 0, "unsaid"), ("kvm", 1, "unsaid"), ("kvm,honor-guest-pat=off", 1, "off")],
)
def test_a_real_qemu(rig: Rig, connect: Connect, accel: str, vms: int, told: str) -> None:
    arguments = ["-M", "q35", "-S", "-nodefaults", "-display", "none", "-accel", accel]
    arguments += ["-chardev", "socket,id=c,path=SOCKET"]
    chroot = Chroot(cache_directory())
    connection = connect(chroot.command("/usr/bin/qemu-system-x86_64", *arguments))
    pid = peer_credentials(connection).pid
    # It connects first, and opens KVM then.
    end = time.monotonic() + PATIENCE
    while (found := probe(pid)).kvm_vms != vms or time.monotonic() < end - PATIENCE + 0.5:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert found == FrontEndFacts(pid, "qemu-system-x86_64", vms, HonorGuestPat(told))
    assert found.is_qemu
    assert probe(pid) == found


def test_a_command_line_without_end(tmp_path: Path) -> None:
    arguments = ["-accel", "kvm,honor-guest-pat=on", *["x" * 1000] * 100]
    assert recorded(tmp_path, "/qemu-system-x86_64", [], arguments).honor_guest_pat == "unsaid"


def test_the_first_descriptors_are_enough_if_a_vm_is_among_them(tmp_path: Path) -> None:
    recorded(tmp_path, "/q", ["anon_inode:kvm-vm", *["/dev/null"] * 99], [])
    order = [entry.name for entry in (tmp_path / "7" / "fd").iterdir()]
    at = order.index("0")
    found = probe(7, tmp_path, limit=at + 1)
    assert (found.kvm_vms, found.incomplete) == (1, False)
    if at:
        found = probe(7, tmp_path, limit=at)
        assert (found.kvm_vms, found.incomplete) == (None, True)
    assert probe(7, tmp_path, limit=100).kvm_vms == 1


def test_the_start_time_tells_processes_apart() -> None:
    ours = start_time(os.getpid())
    assert ours is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        theirs = start_time(other.pid)
        assert theirs is not None
        assert theirs >= ours
        assert start_time(other.pid) == theirs
    assert start_time(other.pid) is None
