"""Builds the guest rig: a Debian 13 chroot with QEMU >= 11.1, and the newest Debian kernel.

`python3 -m tests.rig.build` builds what is missing and says where it is. Needs root and a machine
that gets packages from a Debian mirror; everything lands in the cache directory (about 1.2 GB) and
nothing is left mounted. This runs before the project is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig import image
from tests.rig.chroot import Chroot, RigUnavailableError, cache_directory

SUITE: Final = "trixie"
# QEMU 11.1 is the first with virtio-gpu's host-visible memory over vhost-user (SHMEM_MAP).
QEMU_VERSION: Final = (11, 1)
# qemu-system-gui has the C back-end (vhost-user-gpu) that ours is compared with. Of libvirt, what
# runs a domain without its daemon (virt-qemu-run), and its clients, which check a domain's XML.
PACKAGES: Final = (
    *("qemu-system-x86", "qemu-system-gui", "qemu-utils"),
    *("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    *("busybox-static", "xz-utils", "zstd", "linux-libc-dev"),
)
TOOLS: Final = (
    "usr/bin/qemu-system-x86_64",
    "usr/lib/qemu/vhost-user-gpu",
    "usr/bin/virt-qemu-run",
    "usr/bin/virt-xml-validate",
    "usr/bin/busybox",
    "usr/bin/xz",
    "usr/bin/zstd",
    "usr/include/drm/virtgpu_drm.h",
)
# What each host tool is in, for machines that have only the base system.
HOST_TOOLS: Final = {"debootstrap": "debootstrap", "cpio": "cpio", "gcc": "gcc libc6-dev"}
KERNEL_NAME: Final = r"linux-modules-([0-9.]+)\+deb13-amd64"


@dataclass(frozen=True, slots=True)
class Rig:
    """A built rig: what QEMU needs to boot the guest."""

    chroot: Chroot
    vmlinux: Path
    initrd: Path

    def inside(self, path: Path) -> str:
        """The name that a file of the cache directory has inside the chroot."""
        return str(Path("/rig") / path.relative_to(self.chroot.cache))


def open_rig() -> Rig:
    """The rig as it stands, with the guest programs compiled anew if they changed (seconds).

    Raises RigUnavailableError with the reason if the chroot or the kernel is missing.
    """
    if os.geteuid() != 0:
        raise RigUnavailableError("the guest rig needs root: it runs QEMU in a chroot")
    chroot = Chroot(cache_directory(), SUITE)
    vmlinux = chroot.cache / "vmlinux"
    if not chroot.has(*TOOLS) or not vmlinux.exists():
        raise RigUnavailableError(f"no guest rig in {chroot.cache}: tests/run builds it")
    missing = [tool for tool in ("cpio", "gcc", "unshare", "setpriv") if not shutil.which(tool)]
    if missing:
        raise RigUnavailableError(f"the guest rig needs {', '.join(missing)}")
    with _locked(chroot.cache):
        return Rig(chroot, vmlinux, image.build(chroot.cache, chroot.root))


def build() -> Rig:
    """Build whatever of the rig is missing (a minute or two the first time), and open it."""
    if os.geteuid() != 0:
        raise RigUnavailableError("building the guest rig needs root: it makes a chroot")
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    uri = _mirror()
    _install_host_tools()
    with _locked(cache):
        if not Chroot(cache, SUITE).has(*TOOLS):
            _build_chroot(cache, uri)
        chroot = Chroot(cache, SUITE)
        _check_qemu(chroot)
        if not (cache / "vmlinux").exists():
            _build_kernel(chroot)
    return open_rig()


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One builder at a time: several test runs may share the cache directory."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _mirror() -> str:
    """The Debian mirror that this machine already uses."""
    sources = [*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")]
    for source in sources:
        text = source.read_text() if source.exists() else ""
        for uri in re.findall(r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s*)?)(\S+)", text, re.MULTILINE):
            if "debian" in uri and "security" not in uri:
                return str(uri)
    raise RigUnavailableError("building the guest rig needs a Debian mirror in the apt sources")


def _install_host_tools() -> None:
    missing = [packages for tool, packages in HOST_TOOLS.items() if not shutil.which(tool)]
    if missing:
        _call("apt-get", "update", "-q")
        _call("apt-get", "install", "-y", "-q", *" ".join(missing).split())


def _build_chroot(cache: Path, uri: str) -> None:
    """Make the chroot beside its place and move it there whole: a broken build leaves none."""
    partial = Chroot(cache, f"{SUITE}.partial")
    shutil.rmtree(partial.root, ignore_errors=True)
    _call("debootstrap", "--variant=minbase", SUITE, str(partial.root), uri)
    # The machine's own way to its mirror: a proxy, and the certificates that vouch for it.
    for conf in Path("/etc/apt/apt.conf.d").glob("99*"):
        shutil.copy(conf, partial.root / "etc/apt/apt.conf.d")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        (partial.root / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
        shutil.copy(certificates, partial.root / "etc/ssl/certs")
    (partial.root / "etc/apt/sources.list").write_text(
        f"deb {uri} {SUITE} main\ndeb {uri} {SUITE}-backports main\n"
    )
    partial.run("apt-get", "update", "-q")
    environment = ("env", "DEBIAN_FRONTEND=noninteractive")
    install = ("apt-get", "install", "-y", "-q", "--no-install-recommends")
    partial.run(*environment, *install, "-t", f"{SUITE}-backports", *PACKAGES)
    partial.run("apt-get", "clean")
    final = cache / SUITE
    shutil.rmtree(final, ignore_errors=True)
    partial.root.rename(final)


def _check_qemu(chroot: Chroot) -> None:
    banner = chroot.run("qemu-system-x86_64", "--version").decode()
    found = re.search(r"version (\d+)\.(\d+)", banner)
    version = tuple(map(int, found.groups())) if found else (0, 0)
    if version < QEMU_VERSION:
        raise RigUnavailableError(f"the guest rig needs QEMU >= 11.1, the mirror has: {banner}")


def _build_kernel(chroot: Chroot) -> None:
    """Fetch the newest Debian kernel, and keep its modules and the ELF file inside its bzImage."""
    kernel = chroot.cache / "kernel"
    if not list(kernel.glob("usr/lib/modules/*/vmlinuz")):
        listing = chroot.run("apt-cache", "search", "--names-only", f"^{KERNEL_NAME}$").decode()
        versions = re.findall(KERNEL_NAME, listing)
        newest = max(versions, key=lambda text: [int(part) for part in text.split(".")])
        packages = [f"linux-{part}-{newest}+deb13-amd64" for part in ("modules", "binary")]
        chroot.run("sh", "-c", 'cd /rig && exec apt-get download -q "$@"', "sh", *packages)
        for package in chroot.cache.glob("linux-*.deb"):
            _call("dpkg-deb", "-x", str(package), str(kernel))
            package.unlink()
    [bzimage] = kernel.glob("usr/lib/modules/*/vmlinuz")
    (chroot.cache / "vmlinux").write_bytes(_vmlinux(chroot, bzimage))


def _vmlinux(chroot: Chroot, bzimage: Path) -> bytes:
    """The ELF file inside a bzImage: booting it through PVH saves a second of decompression."""
    data = bzimage.read_bytes()
    for magic, tool in (
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x1f\x8b\x08", "gzip"),
    ):
        start = data.find(magic)
        while start >= 0:
            # The decompressor complains about what follows the payload; what came out decides.
            unpacked = subprocess.run(
                chroot.command(tool, "-dc"), input=data[start:], capture_output=True, check=False
            )
            if unpacked.stdout.startswith(b"\x7fELF"):
                return unpacked.stdout
            start = data.find(magic, start + 1)
    raise RigUnavailableError(f"no ELF kernel in {bzimage}")


def _call(*argv: str) -> None:
    # What a build says is no result of the tests that it may be for.
    subprocess.run(argv, stdout=sys.stderr, check=True)


if __name__ == "__main__":
    try:
        rig = build()
    except (RigUnavailableError, subprocess.CalledProcessError) as error:
        sys.exit(f"rig: {error}")
    print(f"rig: {rig.chroot.cache} is ready, guest image {rig.initrd.name}")
