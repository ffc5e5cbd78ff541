"""Builds the compiled modules with cffi in API mode: the compiler checks every declaration.

`native._native` is our own C, declared in native.h; `uapi._linux` is the kernel's ABI, declared in
linux_abi.cdef and checked against the kernel's headers; `microvm._guest` is the micro-VM's guest,
its code as bytes and its structs, declared in guest.h. A header that is ours is included by the C
files and read by cffi: each declaration exists once.

The package's own build runs this file through setup.py; run directly, it builds all of them in
place, each in its own package.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from cffi import FFI

# Relative under setup.py, which runs at the root and wants such paths; absolute when run directly.
PACKAGE: Final = Path(__file__).parent.parent
NATIVE: Final = PACKAGE / "native"
UAPI: Final = PACKAGE / "uapi"
MICROVM: Final = PACKAGE / "microvm"

SOURCES: Final = (
    *("cache_lines.c", "rect.c", "tiles.c", "ring.c", "transfer.c", "mapping.c"),
    "bench.c",
)
GUEST_SOURCES: Final = ("guest.c", "guest_front_end.c", "guest_measure.c")

# No -march: built on one machine, run on another. What depends on the CPU is decided at run time.
_CHECKS: Final = (
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # cffi's wrappers have one each
    "-Werror=implicit-function-declaration",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
    "-Werror=return-type",
)
CFLAGS: Final = ("-O2", *_CHECKS)
# They keep the compiler from making anything in the guest's section depend on the rest of the
# module: calls of memset, tables for a switch, a stack canary in thread-local storage. They come
# after the Python build's own, and so win.
GUEST_CFLAGS: Final = (
    "-O1",
    *_CHECKS,
    "-fPIC",
    "-fno-builtin",
    "-fno-tree-loop-distribute-patterns",
    "-fno-jump-tables",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-fno-lto",
)


def declarations(header: str) -> str:
    """Return what cffi needs of a C header: no comments, no preprocessor lines."""
    return re.sub(r"^#[^\n]*|/\*.*?\*/", "", header, flags=re.MULTILINE | re.DOTALL)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


native_builder = FFI()
native_builder.cdef(declarations(_read(NATIVE / "native.h")))
native_builder.set_source(
    "vgpud.native._native",
    '#include "native.h"',
    sources=[str(NATIVE / name) for name in SOURCES],
    depends=[str(NATIVE / "native.h"), str(NATIVE / "cache_lines.h")],
    include_dirs=[str(NATIVE)],
    extra_compile_args=list(CFLAGS),
)

linux_builder = FFI()
linux_builder.cdef(_read(UAPI / "linux_abi.cdef"))
linux_builder.set_source(
    "vgpud.uapi._linux",
    '#include "linux_abi.h"',
    depends=[str(UAPI / "linux_abi.h")],
    include_dirs=[str(UAPI)],
    extra_compile_args=list(CFLAGS),
)

guest_builder = FFI()
guest_builder.cdef(declarations(_read(MICROVM / "guest.h")))
guest_builder.set_source(
    "vgpud.microvm._guest",
    '#include "guest.h"',
    sources=[str(MICROVM / name) for name in GUEST_SOURCES],
    depends=[str(MICROVM / "guest.h"), str(MICROVM / "guest_cpu.h")],
    include_dirs=[str(MICROVM)],
    extra_compile_args=list(GUEST_CFLAGS),
)

BUILDERS: Final = {NATIVE: native_builder, UAPI: linux_builder, MICROVM: guest_builder}


def build_in_place(package: Path, builder: FFI) -> Path:
    """Compile a module, and put it into its package in place of any former one; return its path."""
    with tempfile.TemporaryDirectory() as work:
        built = Path(builder.compile(tmpdir=work))
        # One built by pip may have another suffix and would go on being imported.
        for former in package.glob(f"{built.name.partition('.')[0]}.*so"):
            former.unlink()
        # Under a new inode: a process that has the former one mapped keeps it.
        return Path(shutil.move(built, package / built.name))


if __name__ == "__main__":
    for directory, module in BUILDERS.items():
        print(build_in_place(directory, module))
