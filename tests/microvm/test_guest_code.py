"""The guest's code can run where it is put, and what it reports is taken apart."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import astuple
from pathlib import Path

import pytest

from vgpud.microvm import boot, guest_code
from vgpud.microvm.guest_code import (
    Boot,
    GuestDone,
    GuestFailedError,
    GuestImage,
    Mapped,
    Pat,
    Program,
    RecordReader,
    Samples,
)
from vgpud.native import build

SECTION = "vgpud_guest"


def block(**changes: int) -> Boot:
    """A boot block for a small picture."""
    values = {"window_gpa": boot.WINDOW_GPA, "window_size": 1 << 20, "width": 8, "height": 4}
    return boot.boot_block(Program.FRONT_END, **{**values, "rounds": 1, **changes})


@pytest.mark.parametrize("source", build.GUEST_SOURCES)
def test_nothing_in_the_guests_section_refers_to_what_is_outside_of_it(
    source: str, tmp_path: Path
) -> None:
    if not shutil.which("gcc") or not shutil.which("readelf"):
        pytest.skip("needs gcc and readelf")
    built = tmp_path / "guest.o"
    command = ["gcc", *build.GUEST_CFLAGS, "-c", str(build.MICROVM / source), "-o", str(built)]
    subprocess.run(command, check=True)
    listed = subprocess.run(
        ["readelf", "--wide", "--relocs", "--symbols", "--sections", str(built)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    number = re.search(rf"\[ *(\d+)\] {SECTION} ", listed)
    assert number, listed
    relocations = listed.partition(f"'.rela{SECTION}'")[2].partition("\n\n")[0]
    # The two programs are in other files, and in this section there.
    ours = re.compile(rf" ({SECTION}|vgpud_guest_front_end|vgpud_guest_measure)( [-+] \w+)?$")
    for line in relocations.splitlines()[2:]:
        assert "R_X86_64_PC32" in line or "R_X86_64_PLT32" in line, line
        assert ours.search(line), line


def test_the_guests_code_is_all_there() -> None:
    code = guest_code.code()
    assert 0 <= guest_code.entry() < len(code)
    assert len(boot.image(block(), code)) < boot.RAM_SIZE


def test_the_boot_block_is_laid_out_as_the_guest_reads_it() -> None:
    packed = block(width=5, height=3, rounds=7).pack()
    assert struct.unpack_from("<4I", packed) == (Program.FRONT_END, 7, 5, 3)
    assert struct.unpack_from("<Q", packed, 16) == (guest_code.LINUX_PAT,)
    assert struct.unpack_from("<2Q", packed, 24)[0] == boot.WINDOW_GPA
    assert struct.unpack_from("<4Q", packed, 72) == astuple(boot.queue(0))
    assert struct.unpack_from("<4Q", packed, 104) == astuple(boot.queue(1))
    assert len(packed) == 136


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"window_size": 4 << 20}, "can be mapped"),
        ({"width": 1024, "height": 1024}, "twice in a window"),
        ({"width": 0}, "twice in a window"),
        ({"window_size": 8192}, "twice in a window"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        block(**changes)
    with pytest.raises(ValueError, match="guest code"):
        boot.image(block(), bytes(1 << 20))


def words(kind: int, payload: bytes) -> bytes:
    """A record as it comes out of the port."""
    return struct.pack("<I", kind | len(payload) // 4 << 16) + payload


@pytest.mark.parametrize(
    ("raw", "record"),
    [
        (words(1, struct.pack("<2Q", 1 << 63, 5)), Pat(1 << 63, 5)),
        (words(2, struct.pack("<2I3Q", 1, 3, 2, 4, 6)), Mapped(1, 3, 2, 4, 6)),
        (words(5, struct.pack("<Q2I", 4096, 64, 48)), GuestImage(4096, 64, 48)),
        (
            words(6, struct.pack("<48I", *range(48))),
            Samples(tuple(range(16)), tuple(range(16, 32)), tuple(range(32, 48))),
        ),
        (words(8, b""), GuestDone()),
    ],
)
def test_records_come_dword_by_dword(raw: bytes, record: guest_code.Record) -> None:
    reader = RecordReader()
    for _ in range(2):
        *partial, last = (raw[at : at + 4] for at in range(0, len(raw), 4))
        assert [reader.add(word) for word in partial] == [None] * len(partial)
        assert reader.add(last) == record


@pytest.mark.parametrize(
    "raw", [words(99, b""), words(0, b""), words(1, bytes(8)), words(8, b"1234")]
)
def test_what_is_no_record_is_an_error(raw: bytes) -> None:
    def read() -> None:
        reader = RecordReader()
        for at in range(0, len(raw), 4):
            reader.add(raw[at : at + 4])

    with pytest.raises(GuestFailedError):
        read()
