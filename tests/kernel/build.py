"""Builds the host that the tests boot: a kernel with KVM_MEM_NON_COHERENT_DMA, and a small Debian.

Everything is made inside the guest rig's chroot, so that the machine's own compiler and packages
do not matter, and kept in $VGPUD_KERNEL (default ~/.cache/vgpud-kernel, 1.5 GB). What was made is
made again only when its recipe changed. This also builds the project's package.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig import build as rig_build
from tests.rig.chroot import Chroot, RigUnavailableError

HERE: Final = Path(__file__).resolve().parent
PROJECT: Final = HERE.parent.parent
PATCH: Final = HERE / "non-coherent-dma.patch"
CONFIG: Final = HERE / "kernel.config"
INIT: Final = HERE / "init"
# What the chroot needs for the kernel, for the image and for the package's wheel.
TOOLS: Final = {
    "usr/bin/gcc": ("gcc", "libc6-dev"),
    "usr/bin/make": ("make",),
    "usr/bin/flex": ("flex",),
    "usr/bin/bison": ("bison",),
    "usr/bin/bc": ("bc",),
    "usr/bin/patch": ("patch",),
    "usr/bin/xz": ("xz-utils",),
    "usr/bin/lz4": ("lz4",),
    "usr/include/libelf.h": ("libelf-dev",),
    "usr/bin/mmdebstrap": ("mmdebstrap",),
    "usr/sbin/mke2fs": ("e2fsprogs",),
    "usr/include/python3.13/Python.h": ("python3-dev",),
    "usr/bin/pip3": ("python3-pip", "python3-setuptools", "python3-wheel"),
    "usr/lib/python3/dist-packages/cffi": ("python3-cffi",),
    "usr/bin/bochs-bin": ("bochs", "bochs-term", "bochsbios", "vgabios"),
    "usr/lib/ISOLINUX/isolinux.bin": ("isolinux", "syslinux-common"),
    "usr/bin/xorriso": ("xorriso",),
}
# The image: what vgpud needs, what its tests need, systemd for those of its units, and iproute2 for
# the loopback device.
IMAGE_PACKAGES: Final = (
    *("python3", "python3-numpy", "python3-cffi", "python3-pydantic", "python3-pyudev"),
    *("python3-asyncio-dgram", "python3-prometheus-client", "python3-shtab"),
    *("python3-pytest", "python3-pytest-timeout", "python3-hypothesis"),
    *("systemd", "systemd-sysv", "udev"),
    "iproute2",
    "qemu-system-x86",
)
# QEMU from the backports, as in the guest rig, with what it needs of the same age.
IMAGE_PINS: Final = f"""\
Package: qemu-system-* seabios ipxe-qemu
Pin: release n={rig_build.SUITE}-backports
Pin-Priority: 500
"""
# Half a gigabyte of other machines' drivers that no configuration of ours reads.
SOURCE_UNUSED: Final = (
    *("*/drivers/gpu/drm/amd/include/*", "*/drivers/net/wireless/*.[ch]", "*/sound/*.[ch]"),
    *("*/drivers/media/*.[ch]", "*/tools/testing/*", "*/Documentation/*/*", "*/*.dts*"),
)
BYTE_CODE: Final = ("python3", "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash")
SOURCE_NAME: Final = r"linux-source-([0-9.]+)"
FREE_BYTES: Final = 4 << 30
DISK_UNIT: Final = 16 * 63 * 512
"""Bytes of which each disk has a whole number: a cylinder, as Bochs counts."""
IMAGE_BYTES: Final = 4000 * DISK_UNIT


@dataclass(frozen=True, slots=True)
class Host:
    """What a boot needs: the chroot that emulators run in, a kernel, the root image, the package.

    `patched` is the kernel with the flag, `plain` the same without: each a directory with `vmlinux`
    and `bzImage`. `package` is a directory with vgpud compiled for the image's Python. The chroot
    sees the cache directory as /rig.
    """

    chroot: Chroot
    patched: Path
    plain: Path
    image: Path
    package: Path

    def inside(self, path: Path) -> str:
        """The name that a file of the cache directory has inside the chroot."""
        return str(Path("/rig") / path.relative_to(self.chroot.cache))


def cache_directory() -> Path:
    """Where everything is kept between runs: $VGPUD_KERNEL, else ~/.cache/vgpud-kernel."""
    named = os.environ.get("VGPUD_KERNEL")
    return Path(named).resolve() if named else Path.home() / ".cache" / "vgpud-kernel"


def open_host() -> Host:
    """The host as it stands, with vgpud compiled anew if it changed (seconds).

    Raises RigUnavailableError, with the reason, where the rig, the kernel or the image is missing
    or is of another recipe.
    """
    chroot = _chroot(rig_build.open_rig())
    patched, plain, image = _patched(chroot), _plain(chroot), _image(chroot)
    if not chroot.has(*TOOLS) or not all(path.exists() for path in (patched, plain, image)):
        raise RigUnavailableError(
            f"no kernels and root image of this recipe in {chroot.cache}: tests/kernel/run build"
            " makes them"
        )
    with _locked(chroot.cache):
        return Host(chroot, patched, plain, image, _package(chroot))


def build() -> Host:
    """Build whatever is missing (seven minutes of two cores the first time), and open it.

    Raises RigUnavailableError where that can't be done; says how long each phase took.
    """
    with _phase("guest rig"):
        chroot = _chroot(rig_build.build())
    chroot.cache.mkdir(parents=True, exist_ok=True)
    with _locked(chroot.cache):
        if not chroot.has(*TOOLS):
            with _phase("tools"):
                _install_tools(chroot)
        if not _image(chroot).exists():
            with _phase("root image"):
                _build_image(chroot)
        if not _plain(chroot).exists() or not _patched(chroot).exists():
            _build_kernels(chroot)
    return open_host()


def _chroot(rig: rig_build.Rig) -> Chroot:
    """The rig's chroot, with our cache directory in the place of the rig's own."""
    return Chroot(cache_directory(), str(rig.chroot.root))


@contextlib.contextmanager
def _phase(name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"kernel: {name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One builder at a time: several test runs may share the cache directory."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _patched(chroot: Chroot) -> Path:
    return chroot.cache / f"patched-{_digest(CONFIG.read_bytes(), PATCH.read_bytes())}"


def _plain(chroot: Chroot) -> Path:
    return chroot.cache / f"plain-{_digest(CONFIG.read_bytes())}"


def _image(chroot: Chroot) -> Path:
    recipe = " ".join((*IMAGE_PACKAGES, IMAGE_PINS, str(IMAGE_BYTES))).encode()
    return chroot.cache / f"root-{_digest(recipe, INIT.read_bytes())}.ext4"


def _install_tools(chroot: Chroot) -> None:
    missing = [name for path, names in TOOLS.items() if not chroot.has(path) for name in names]
    install = ("apt-get", "install", "-y", "-q", "--no-install-recommends")
    # QEMU brought libraries from the backports; headers must be of the same versions.
    release = ("-t", f"{rig_build.SUITE}-backports")
    chroot.run_quietly("apt-get", "update", "-q")
    chroot.run_quietly("env", "DEBIAN_FRONTEND=noninteractive", *install, *release, *missing)
    chroot.run_quietly("apt-get", "clean")


def _fetch_source(chroot: Chroot) -> None:
    """Unpack the newest kernel source that the chroot's mirror has."""
    listing = chroot.run("apt-cache", "search", "--names-only", f"^{SOURCE_NAME}$").decode()
    versions = re.findall(SOURCE_NAME, listing)
    if not versions:
        raise RigUnavailableError("the Debian mirror has no linux-source package")
    newest = max(versions, key=lambda text: [int(part) for part in text.split(".")])
    for leftover in chroot.cache.glob("linux-source-*.deb"):
        leftover.unlink()
    fetch = 'cd /rig && exec apt-get download -q "$1"'
    chroot.run_quietly("sh", "-c", fetch, "sh", f"linux-source-{newest}")
    [package] = chroot.cache.glob("linux-source-*.deb")
    partial = chroot.cache / "linux.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # The package holds one tar archive, compressed; both layers are undone in one pass.
    unpack = (
        'dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "*/linux-source-*.tar.xz" '
        '| xz -dcT0 | tar -x -C "$2" --strip-components=1 --wildcards '
        + " ".join(f"--exclude='{pattern}'" for pattern in SOURCE_UNUSED)
    )
    chroot.run("sh", "-c", unpack, "sh", f"/rig/{package.name}", f"/rig/{partial.name}")
    package.unlink()
    partial.rename(chroot.cache / "linux")


def _build_kernels(chroot: Chroot) -> None:
    """Make both kernels in one tree, where the second is a matter of a few files."""
    if shutil.disk_usage(chroot.cache).free < FREE_BYTES:
        raise RigUnavailableError(f"{chroot.cache} needs {FREE_BYTES >> 30} GiB of free disk")
    if not (chroot.cache / "linux").exists():
        with _phase("kernel source"):
            _fetch_source(chroot)
    # A patch is undone by the text that was applied: ours may have changed since.
    applied = chroot.cache / "applied.patch"
    if applied.exists():
        _patch(chroot, applied, "--reverse")
        applied.unlink()
    if not _plain(chroot).exists():
        with _phase("kernel"):
            _make(chroot, _plain(chroot))
    if not _patched(chroot).exists():
        with _phase("kernel with the flag"):
            _patch(chroot, PATCH, "--forward")
            shutil.copy(PATCH, applied)
            _make(chroot, _patched(chroot))


def _patch(chroot: Chroot, patch: Path, direction: str) -> None:
    try:
        with patch.open("rb") as stdin:
            chroot.run("patch", "-d", "/rig/linux", "-p1", "-s", direction, stdin=stdin)
    except BaseException as error:
        # Hunks that did apply would be in the way of every later run.
        shutil.rmtree(chroot.cache / "linux")
        (chroot.cache / "applied.patch").unlink(missing_ok=True)
        if isinstance(error, subprocess.CalledProcessError):
            reason = f"{patch.name} does not apply to the kernel source"
            raise RigUnavailableError(reason) from error
        raise


def _make(chroot: Chroot, kernel: Path) -> None:
    """Make the tree as it stands, and keep the result in the directory `kernel`."""
    shutil.copy(CONFIG, chroot.cache / "kernel.config")
    make = ("nice", "make", "-s", "-C", "/rig/linux", "O=/rig/obj")
    chroot.run(*make, "KCONFIG_ALLCONFIG=/rig/kernel.config", "allnoconfig")
    _check_config((chroot.cache / "obj/.config").read_text())
    chroot.run(*make, f"-j{os.cpu_count() or 1}", "vmlinux", "bzImage")
    partial = chroot.cache / "kernel.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    shutil.copy(chroot.cache / "obj/vmlinux", partial)
    shutil.copy(chroot.cache / "obj/arch/x86/boot/bzImage", partial)
    partial.rename(kernel)


def _check_config(made: str) -> None:
    """Complain about options that Kconfig dropped: a kernel without them boots and fails late."""
    lines = set(made.splitlines())
    wanted = [line for line in CONFIG.read_text().splitlines() if line.startswith("CONFIG_")]
    lost = [line for line in wanted if line not in lines]
    if lost:
        raise RigUnavailableError(f"the kernel source does not take {', '.join(lost)}")


def _build_image(chroot: Chroot) -> None:
    """Make a Debian root with Python and what vgpud imports, as a file system image."""
    sources = (chroot.root / "etc/apt/sources.list").read_text().splitlines()
    (chroot.cache / "root.pins").write_text(IMAGE_PINS)
    # A tmpfs-free place of its own: the tree is half a gigabyte and short-lived.
    work = chroot.cache / "root.partial"
    shutil.rmtree(work, ignore_errors=True)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    include = f"--include={','.join(IMAGE_PACKAGES)}"
    pins = '--setup-hook=cp /rig/root.pins "$1/etc/apt/preferences.d/pins"'
    debootstrap = ("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", include, *excluded)
    chroot.run_quietly(*debootstrap, pins, rig_build.SUITE, f"/rig/{work.name}", *sources)
    for leftover in (work / "var/cache/apt", work / "var/lib/apt/lists"):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copy(INIT, work / "vgpud-init")
    (work / "vgpud-init").chmod(0o755)
    partial = chroot.cache / "root.ext4.partial"
    partial.unlink(missing_ok=True)
    make = ("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0")
    chroot.run(*make, "-d", f"/rig/{work.name}", f"/rig/{partial.name}", f"{IMAGE_BYTES >> 10}K")
    shutil.rmtree(work)
    partial.rename(_image(chroot))


def _package(chroot: Chroot) -> Path:
    """Compile vgpud for the image's Python, unless this very source was compiled before."""
    sources = [PROJECT / name for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE")]
    sources += [
        path
        for path in sorted((PROJECT / "vgpud").rglob("*"))
        # What a build in place leaves there is none of it: _native.c, and the module itself.
        if path.suffix in {".py", ".pyi"}
        or (path.suffix not in {"", ".pyc"} and path.name[0] != "_")
    ]
    for shared in ("config", "man", "systemd"):
        sources += sorted((PROJECT / shared).glob("*"))
    names = [str(path.relative_to(PROJECT)) for path in sources]
    parts = [part for name in names for part in (name.encode(), (PROJECT / name).read_bytes())]
    parts.append(" ".join(BYTE_CODE).encode())
    package = chroot.cache / f"vgpud-{_digest(*parts)}"
    if package.exists():
        os.utime(package)
        return package
    with _phase("vgpud for the guest's Python"):
        work = chroot.cache / "wheel.partial"
        shutil.rmtree(work, ignore_errors=True)
        for name in names:
            (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, work / "source" / name)
        pip = ("pip3", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
        made = ("--wheel-dir", "/rig/wheel.partial", "/rig/wheel.partial/source")
        chroot.run(*pip, *made)
        [wheel] = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "vgpud")
        # Not by each program in the guest: that takes it seconds.
        chroot.run(*BYTE_CODE, "/rig/wheel.partial/vgpud")
        # Others' runs may hold an older state in use for as long as a boot takes, no longer.
        for old in chroot.cache.glob("vgpud-*"):
            if time.time() - old.stat().st_mtime > 3600:
                shutil.rmtree(old)
        (work / "vgpud").rename(package)
        shutil.rmtree(work)
    return package
