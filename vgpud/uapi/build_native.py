"""Builds the two compiled modules with cffi in API mode: the compiler checks every declaration.

`_native` is our own C: native.h is the single list of its declarations, which the C files include
and cffi reads. `_linux` is the kernel's ABI: linux_abi.cdef, checked against the kernel's headers.
The package's own build runs this file through setup.py; run directly, it builds both in place,
beside itself.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

# Relative under setup.py, which runs at the root and wants such paths; absolute when run directly.
HERE = Path(__file__).parent
SOURCES = (
    *("native.c", "rect.c", "tiles.c", "ring.c", "transfer.c", "mapping.c"),
    "bench.c",
)
# No -march: built on one machine, run on another. What depends on the CPU is decided at run time.
CFLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # cffi's wrappers have one each
    "-Werror=implicit-function-declaration",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
    "-Werror=return-type",
)


def declarations(header: str) -> str:
    """Return what cffi needs of a C header: no comments, no preprocessor lines."""
    return re.sub(r"^#[^\n]*|/\*.*?\*/", "", header, flags=re.MULTILINE | re.DOTALL)


ffibuilder = FFI()
ffibuilder.cdef(declarations((HERE / "native.h").read_text(encoding="utf-8")))
ffibuilder.set_source(
    "vgpud.uapi._native",
    '#include "native.h"',
    sources=[str(HERE / name) for name in SOURCES],
    depends=[str(HERE / "native.h"), str(HERE / "cache_lines.h")],
    include_dirs=[str(HERE)],
    extra_compile_args=list(CFLAGS),
)

linux_ffibuilder = FFI()
linux_ffibuilder.cdef((HERE / "linux_abi.cdef").read_text(encoding="utf-8"))
linux_ffibuilder.set_source(
    "vgpud.uapi._linux",
    '#include "linux_abi.h"',
    depends=[str(HERE / "linux_abi.h")],
    include_dirs=[str(HERE)],
    extra_compile_args=list(CFLAGS),
)


def build_in_place(builder: FFI, name: str) -> Path:
    """Compile, and put the module beside this file instead of any former one; return its path."""
    with tempfile.TemporaryDirectory() as work:
        built = Path(builder.compile(tmpdir=work))
        # One built by pip may have another suffix and would go on being imported.
        for former in HERE.glob(f"{name}.*so"):
            former.unlink()
        # Under a new inode: a process that has the former one mapped keeps it.
        return Path(shutil.move(built, HERE / built.name))


if __name__ == "__main__":
    print(build_in_place(ffibuilder, "_native"))
    print(build_in_place(linux_ffibuilder, "_linux"))
