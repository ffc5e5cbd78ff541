"""Builds `vgpud.microvm._guest` with cffi in API mode: the guest's code as bytes, and its structs.

The package's own build runs this file through setup.py; run directly, it builds the module in
place, beside itself. guest.h is the single list of declarations: what the C files include, cffi
reads too. The flags keep the compiler from making anything in the guest's section depend on the
rest of the module: calls of memset, tables for a switch, a stack canary in thread-local storage.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

# Relative under setup.py, which runs at the root and wants such paths; absolute when run directly.
HERE = Path(__file__).parent
SOURCES = ("guest.c", "guest_front_end.c", "guest_measure.c")
# They come after the Python build's own, and so win.
CFLAGS = (
    "-std=gnu11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # cffi's wrappers have one each
    "-Werror=implicit-function-declaration",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
    "-Werror=return-type",
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


ffibuilder = FFI()
ffibuilder.cdef(declarations((HERE / "guest.h").read_text(encoding="utf-8")))
ffibuilder.set_source(
    "vgpud.microvm._guest",
    '#include "guest.h"',
    sources=[str(HERE / name) for name in SOURCES],
    depends=[str(HERE / "guest.h"), str(HERE / "guest_cpu.h")],
    include_dirs=[str(HERE)],
    extra_compile_args=list(CFLAGS),
)


def build_in_place() -> Path:
    """Compile, and put the module beside this file instead of any former one; return its path."""
    with tempfile.TemporaryDirectory() as work:
        built = Path(ffibuilder.compile(tmpdir=work))
        # One built by pip may have another suffix and would go on being imported.
        for former in HERE.glob("_guest.*so"):
            former.unlink()
        # Under a new inode: a process that has the former one mapped keeps it.
        return Path(shutil.move(built, HERE / built.name))


if __name__ == "__main__":
    print(build_in_place())
