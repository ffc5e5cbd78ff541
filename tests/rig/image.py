"""Builds the guest's initramfs: the kernel's virtio modules, busybox, the guest programs, init.

The image's name carries the hash of everything that went into it: a changed program makes a new
image, and runs that share the cache never take each other's.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
APPLETS: Final = (
    *("sh", "mount", "insmod", "stty", "dmesg", "poweroff", "reboot", "kill", "timeout", "ps"),
    *("cat", "echo", "ls", "grep", "head", "tail", "tr", "sed", "wc", "cut", "sort", "hexdump"),
    *("cmp", "cp", "dd", "mkdir", "rm", "readlink", "seq", "sleep", "usleep"),
)
# The new kernel's DRM headers, and what they include that an older host's headers lack.
HEADERS: Final = ("drm/*.h", "linux/bits.h", "linux/const.h")
CFLAGS: Final = ("-O2", "-static", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
# An image that no run asked for in a day belongs to an older state of the programs.
STALE_S: Final = 86400.0


def build(cache: Path, root: Path) -> Path:
    """Make the initramfs from the kernel in `cache` and the chroot `root`; return its path."""
    [modules] = (cache / "kernel/usr/lib/modules").iterdir()
    sources = sorted((HERE / "programs").glob("*.[ch]"))
    digest = hashlib.sha256(modules.name.encode())
    for path in (*sources, HERE / "init", Path(__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    image = cache / f"guest-{digest.hexdigest()[:16]}.cpio"
    if image.exists():
        os.utime(image)
        return image
    include = cache / "include"
    for pattern in HEADERS:
        for header in (root / "usr/include").glob(pattern):
            target = include / header.relative_to(root / "usr/include")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(header, target)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        tree = Path(name) / "tree"
        _base(tree, root)
        _modules(tree / "lib", modules, ["virtio_gpu", "virtio_rng"])
        for source in sources:
            if source.suffix == ".c":
                program = tree / "bin" / source.stem
                argv = ["gcc", *CFLAGS, f"-I{include}", "-o", str(program), str(source)]
                subprocess.run(argv, check=True)
        packed = Path(name) / "image"
        with packed.open("wb") as out:
            files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "--quiet"],
                input="\n".join(files).encode(),
                stdout=out,
                cwd=tree,
                check=True,
            )
        packed.rename(image)
    for other in cache.glob("guest-*.cpio"):
        if other.stat().st_mtime < image.stat().st_mtime - STALE_S:
            other.unlink()
    return image


def _base(tree: Path, root: Path) -> None:
    for directory in ("bin", "lib", "proc", "sys", "dev", "tmp"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    shutil.copy(HERE / "init", tree / "init")
    (tree / "init").chmod(0o755)
    # The kernel opens the console for init before devtmpfs is there.
    for name, major, minor in (("console", 5, 1), ("null", 1, 3)):
        os.mknod(tree / "dev" / name, 0o600 | 0o020000, os.makedev(major, minor))


def _modules(target: Path, modules: Path, wanted: list[str]) -> None:
    """Put `wanted` and what they depend on into `target`, with the order to insert them in."""
    files = {
        path.name.split(".ko")[0].replace("-", "_"): path
        for path in (modules / "kernel").rglob("*.ko*")
    }
    order: list[str] = []

    def need(name: str) -> None:
        if name in order or name not in files:  # a module without a file is built in
            return
        raw = files[name].read_bytes()
        module = lzma.decompress(raw) if files[name].suffix == ".xz" else raw
        depends = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
        for dependency in filter(None, depends[1].decode().split(",") if depends else ()):
            need(dependency.replace("-", "_"))
        (target / f"{name}.ko").write_bytes(module)
        order.append(name)

    for name in wanted:
        need(name)
    (target / "order").write_text("\n".join(order) + "\n")
