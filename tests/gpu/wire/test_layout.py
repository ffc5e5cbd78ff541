"""Our bytes against those a C compiler makes of the kernel's own header.

Every sample command is written field by field into the kernel's struct of it, so that a field at
the wrong place, of the wrong size or in the wrong order shows. The numbers of the enumerations are
compared too, as far as the header that is installed knows them.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.gpu.wire.command_cases import COMMANDS, TAILS
from vgpud.gpu.wire import protocol, responses
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.commands import CtxCreate
from vgpud.gpu.wire.header import HEADER_SIZE, Box, Rect
from vgpud.gpu.wire.mem_entries import MEM_ENTRY

if TYPE_CHECKING:
    from pathlib import Path

    from vgpud.gpu.wire.command_codec import Command

# What the kernel's names begin with, per enumeration of ours.
PREFIXES = {
    protocol.CommandType: "VIRTIO_GPU_CMD_",
    protocol.ResponseType: "VIRTIO_GPU_RESP_",
    protocol.Flag: "VIRTIO_GPU_FLAG_",
    protocol.ConfigEvent: "VIRTIO_GPU_EVENT_",
    protocol.Format: "VIRTIO_GPU_FORMAT_",
    protocol.BlobMem: "VIRTIO_GPU_BLOB_MEM_",
    protocol.BlobFlag: "VIRTIO_GPU_BLOB_FLAG_",
    protocol.MapInfo: "VIRTIO_GPU_MAP_CACHE_",
    protocol.CapsetId: "VIRTIO_GPU_CAPSET_",
    protocol.ShmId: "VIRTIO_GPU_SHM_ID_",
    protocol.Feature: "VIRTIO_GPU_F_",
}
# These are enumerators, not macros: #ifdef can't ask for them, but they are in every header.
ENUMERATORS = (
    protocol.CommandType,
    protocol.ResponseType,
    protocol.Format,
    protocol.ShmId,
)
SIZES = {
    "ctrl_hdr": HEADER_SIZE,
    "mem_entry": MEM_ENTRY.itemsize,
    "resp_display_info": responses.DISPLAY_INFO_SIZE,
    "resp_edid": responses.EDID_RESPONSE_SIZE,
    "resp_map_info": 32,
    "resp_resource_uuid": 40,
    "resp_capset_info": 40,
    "resp_capset": 24,
}


def values(command: Command) -> list[tuple[str, int | bytes]]:
    """The fields of a command with their names, then the count of what follows, flattened."""
    flat: list[tuple[str, int | bytes]] = []
    for field in fields(command):
        value = getattr(command, field.name)
        match value:
            case Rect() | Box():
                flat += [(part.name, getattr(value, part.name)) for part in fields(value)]
            case tuple():
                flat += [(f"{field.name}[{index}]", part) for index, part in enumerate(value)]
            case np.ndarray():
                flat.append(("nr_entries", len(value)))
            case bytes() if isinstance(command, CtxCreate):
                flat += [(field.name, value), ("nlen", len(value))]
            case bytes():
                flat.append(("size", len(value)))
            case int():
                flat.append((field.name, value))
    return flat


def program() -> str:
    """C that prints a line for each struct, size and number."""
    lines = ["#include <linux/virtio_gpu.h>", "#include <stdio.h>", "#include <string.h>"]
    lines.append("static void dump(const char *name, const void *at, unsigned size) {")
    lines.append('  printf("%s ", name); const unsigned char *byte = at;')
    lines.append('  while (size--) printf("%02x", *byte++);')
    lines.append('  puts(""); }')
    lines.append("int main(void) {")
    for command, struct_name, names in COMMANDS:
        hdr = command.header
        hdr_at = "s." if struct_name == "ctrl_hdr" else "s.hdr."
        lines.append(f"{{ struct virtio_gpu_{struct_name} s; memset(&s, 0, sizeof s);")
        lines.append(f"{hdr_at}type = {hdr.type}u; {hdr_at}flags = {hdr.flags}u;")
        lines.append(f"{hdr_at}fence_id = {hdr.fence_id}ull; {hdr_at}ctx_id = {hdr.ctx_id}u;")
        lines.append(f"{hdr_at}ring_idx = {hdr.ring_idx}u;")
        for name, (_, value) in zip(names.split(), values(command), strict=True):
            if isinstance(value, bytes):
                lines.append(f'memcpy(s.{name}, "{value.decode()}", {len(value)});')
            else:
                lines.append(f"s.{name} = {value}ull;")
        lines.append(f'dump("{type(command).__name__}", &s, sizeof s); }}')
    for struct_name in SIZES:
        printf = f'printf("{struct_name} %zu\\n", sizeof(struct virtio_gpu_{struct_name}));'
        lines.append(printf)
    for enum, prefix in PREFIXES.items():
        for member in enum:
            printf = f'printf("{prefix}{member.name} %d\\n", (int){prefix}{member.name});'
            guarded = enum not in ENUMERATORS
            lines += [f"#ifdef {prefix}{member.name}"] * guarded + [printf] + ["#endif"] * guarded
    return "\n".join([*lines, "return 0; }"]) + "\n"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the program printed: a word of value for each name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    directory: Path = tmp_path_factory.mktemp("layout")
    source = directory / "layout.c"
    source.write_text(program())
    if compiler is None or not _has_header(compiler):
        reason = "no C compiler, or no linux/virtio_gpu.h (Debian: gcc, linux-libc-dev)"
        pytest.skip(reason)
    subprocess.run([compiler, "-o", directory / "layout", source], check=True, timeout=60)
    printed = subprocess.run(
        [directory / "layout"], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    return dict(line.split(" ", 1) for line in printed.splitlines())


def _has_header(compiler: str) -> bool:
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"],
        input="#include <linux/virtio_gpu.h>\n#ifndef VIRTIO_GPU_F_CONTEXT_INIT\n#error\n#endif\n",
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return probe.returncode == 0


@pytest.mark.parametrize(
    "command", [command for command, _, _ in COMMANDS], ids=lambda command: type(command).__name__
)
def test_a_command_is_the_kernels_struct(command: Command, kernel: dict[str, str]) -> None:
    encoded = encode(command)
    without_tail = encoded[: len(encoded) - TAILS.get(type(command), 0)]
    assert without_tail.hex() == kernel[type(command).__name__]


@pytest.mark.parametrize(
    ("command", "names"),
    [(command, names) for command, _, names in COMMANDS],
    ids=lambda value: type(value).__name__,
)
def test_fields_bear_the_kernels_names(command: Command, names: str) -> None:
    assert [name.rpartition(".")[2] for name in names.split()] == [
        name for name, _ in values(command)
    ]


@pytest.mark.parametrize("struct_name", sorted(SIZES))
def test_sizes(struct_name: str, kernel: dict[str, str]) -> None:
    assert SIZES[struct_name] == int(kernel[struct_name])


@pytest.mark.parametrize("enum", PREFIXES, ids=lambda enum: enum.__name__)
def test_numbers(enum: type[protocol.CommandType], kernel: dict[str, str]) -> None:
    prefix = PREFIXES[enum]
    known = {member.name: kernel.get(prefix + member.name) for member in enum}
    compared = {name: int(value) for name, value in known.items() if value is not None}
    assert compared == {name: int(enum[name]) for name in compared}
    assert compared, "the header knows none of these"


def test_the_limits(kernel: dict[str, str]) -> None:
    assert protocol.MAX_SCANOUTS == 16
    assert protocol.CONTEXT_INIT_CAPSET_ID_MASK == 0xFF
    # Features and capsets newer than the oldest header that is good enough, spelled out.
    assert kernel.get("VIRTIO_GPU_F_BLOB_ALIGNMENT", "5") == str(protocol.Feature.BLOB_ALIGNMENT)
    assert kernel["VIRTIO_GPU_F_CONTEXT_INIT"] == "4"
