"""The build of the compiled modules, with cffi in API mode: the compiler checks every declaration.

`native._native` is the project's own C, declared in native.h; `uapi._linux` is the kernel's ABI,
declared in linux_abi.cdef and checked against the kernel's headers; `microvm._guest` is the
micro-VM's guest, its code as bytes and its structs, declared in guest.h. The C files include the
project's own headers and cffi reads them, so each declaration exists once.

The package's build runs this file through setup.py. Run directly, it builds all modules in place,
each in its own package.
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
    *("cpu.c", "shared_words.c", "cache_lines.c", "rect.c", "dirty_log.c"),
    *("overlap.c", "tiles.c", "ring.c", "transfer.c", "mapping.c", "pages.c"),
    *("eventfd.c", "unix_socket.c", "bench.c"),
)
HEADERS: Final = ("native.h", "cpu.h", "cache_lines.h", "spans.h")
GUEST_SOURCES: Final = ("guest.c", "guest_front_end.c", "guest_measure.c")

# No -march: a module may run on another machine than it was built on. What depends on the CPU is
# decided at run time.
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
# These keep the compiler from making the guest's section depend on the rest of the module: calls of
# memset, tables for a switch, a stack canary in thread-local storage. They come after the flags of
# Python's own build, and so override them.
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
    """Return a C header as cffi reads it: without comments and preprocessor lines."""
    return re.sub(r"^#[^\n]*|/\*.*?\*/", "", header, flags=re.MULTILINE | re.DOTALL)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


native_builder = FFI()
native_builder.cdef(declarations(_read(NATIVE / "native.h")))
native_builder.set_source(
    "vgpud.native._native",
    '#include "native.h"',
    sources=[str(NATIVE / name) for name in SOURCES],
    depends=[str(NATIVE / name) for name in HEADERS],
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
    """Compile a module, replace the one in its package, and return its path."""
    with tempfile.TemporaryDirectory() as work:
        built = Path(builder.compile(tmpdir=work))
        # A module built by pip may have another suffix, and would be imported instead.
        for former in package.glob(f"{built.name.partition('.')[0]}.*so"):
            former.unlink()
        # By a move, not in place: a process that has the former file mapped keeps its inode.
        return Path(shutil.move(built, package / built.name))


if __name__ == "__main__":
    for directory, module in BUILDERS.items():
        print(build_in_place(directory, module))
