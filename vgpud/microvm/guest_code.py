"""The guest's code as bytes, its boot block, and the records that it reports.

This is the typed facade of the compiled module: its structs become values here. The guest's code is
in guest.c and the other C files of this directory; its interface to the VMM is in guest.h.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final, TypeAlias

from vgpud.errors import VgpudError
from vgpud.microvm._guest import ffi, lib

RECORD_PORT: Final[int] = lib.VGPUD_RECORD_PORT
QUEUES: Final[int] = lib.VGPUD_QUEUES
QUEUE_SIZE: Final[int] = lib.VGPUD_QUEUE_SIZE
CHASE_LINES: Final[int] = lib.VGPUD_CHASE_LINES

LINUX_PAT: Final = 0x0407050600070106
"""The PAT that Linux programs: entries 0 to 7 are WB, WC, UC-, UC, WB, WP, UC-, WT.

Source: arch/x86/mm/pat/memtype.c. guest.c picks its attributes by it.
"""


class GuestFailedError(VgpudError):
    """The micro-VM's guest did not run to its end; the message says where it stopped."""


class Program(IntEnum):
    """The program that the guest runs."""

    FRONT_END = lib.VGPUD_PROGRAM_FRONT_END
    MEASURE = lib.VGPUD_PROGRAM_MEASURE


@dataclass(frozen=True, slots=True)
class Queue:
    """The addresses of a virtqueue in guest RAM; the guest kicks it by writing to `doorbell_va`."""

    desc: int
    avail: int
    used: int
    doorbell_va: int


@dataclass(frozen=True, slots=True)
class Boot:
    """The boot block: `vgpud_guest_boot` of guest.h.

    `rounds` and `width` x `height` pixels are of the front-end's program. Two pictures, 4 bytes a
    pixel and each rounded up to whole pages, must fit into the window with one more page.
    """

    program: Program
    rounds: int
    width: int
    height: int
    pat: int
    window_gpa: int
    window_va: int
    window_size: int
    window_table: int
    request: int
    response: int
    queues: tuple[Queue, Queue]

    def pack(self) -> bytes:
        """Return the block in the guest's format."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["queues"] = [
            {field.name: getattr(queue, field.name) for field in fields(queue)}
            for queue in self.queues
        ]
        return bytes(ffi.buffer(ffi.new("vgpud_guest_boot *", values)))


@dataclass(frozen=True, slots=True)
class Pat:
    """The PAT MSR as the guest wrote it, and as it reads back."""

    written: int
    read_back: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A blob that the guest has mapped in its page tables.

    `map_info` is the device's answer, `entry` is the page table entry that the guest made for the
    first page. `offset` in the window and `size` are in bytes.
    """

    resource_id: int
    map_info: int
    offset: int
    size: int
    entry: int


@dataclass(frozen=True, slots=True)
class Written:
    """A picture that the guest wrote through the window, without a flush.

    `crc` is computed from the values that the guest wrote, not read back.
    """

    round: int
    crc: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Dma:
    """The device's CRCs, the guest's own, and how many pixels the guest read back wrong."""

    round: int
    picture_crc: int
    own_picture_crc: int
    copy_crc: int
    own_copy_crc: int
    wrong_pixels: int

    @property
    def holds(self) -> bool:
        """Whether guest and device saw the same bytes in both directions."""
        return (
            self.picture_crc == self.own_picture_crc
            and self.copy_crc == self.own_copy_crc
            and self.wrong_pixels == 0
        )


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The copy's place in the window: rows of `width` pixels of B, G, R, X without gaps."""

    offset: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of time stamp counts, each of `CHASE_LINES` dependent loads.

    `hit` is of lines that are write-back and cached, `miss` of write-back lines that were just
    flushed, `wc` of a mapping that asks for write-combining, after a first pass over it.
    """

    hit: tuple[int, ...]
    miss: tuple[int, ...]
    wc: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The guest's failure: the type of a command, and that of its response."""

    command: int
    response: int


@dataclass(frozen=True, slots=True)
class GuestDone:
    """The guest's end, with or without success."""


Record: TypeAlias = Pat | Mapped | Written | Dma | GuestImage | Samples | Failed | GuestDone

_RECORDS: Final[dict[int, tuple[str, type[Any]]]] = {
    lib.VGPUD_RECORD_PAT: ("vgpud_guest_pat *", Pat),
    lib.VGPUD_RECORD_MAPPED: ("vgpud_guest_mapped *", Mapped),
    lib.VGPUD_RECORD_WRITTEN: ("vgpud_guest_written *", Written),
    lib.VGPUD_RECORD_DMA: ("vgpud_guest_dma *", Dma),
    lib.VGPUD_RECORD_IMAGE: ("vgpud_guest_image *", GuestImage),
    lib.VGPUD_RECORD_SAMPLES: ("vgpud_guest_samples *", Samples),
    lib.VGPUD_RECORD_FAILED: ("vgpud_guest_failed *", Failed),
    lib.VGPUD_RECORD_DONE: ("", GuestDone),
}


class RecordReader:
    """A decoder of the dwords that the guest writes to the record port."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> Record | None:
        """Add one dword, and return the record that it completes, or None.

        Raises `GuestFailedError` for data that is no record.
        """
        self._data += data
        header = int.from_bytes(self._data[:4], "little")
        kind, length = header & 0xFFFF, (header >> 16) * 4
        if kind not in _RECORDS:
            raise GuestFailedError(f"the guest reported {header:#x}, which is no record")
        if len(self._data) < 4 + length:
            return None
        payload, self._data = bytes(self._data[4:]), bytearray()
        return _decode(kind, payload)


def code() -> bytes:
    """Return the guest's code, which is position-independent."""
    return bytes(ffi.buffer(lib.vgpud_guest_code(), lib.vgpud_guest_code_size()))


def entry() -> int:
    """Return the offset of the entry point, which expects the boot block's address in rdi."""
    offset: int = lib.vgpud_guest_code_entry()
    return offset


def _decode(kind: int, payload: bytes) -> Record:
    layout, record = _RECORDS[kind]
    struct = ffi.new(layout) if layout else None
    if len(payload) != (ffi.sizeof(struct[0]) if struct else 0):
        raise GuestFailedError(f"the guest's {record.__name__} has {len(payload)} bytes")
    values = []
    if struct:
        ffi.memmove(struct, payload, len(payload))
        for field in fields(record):
            value = getattr(struct, field.name)
            values.append(value if isinstance(value, int) else tuple(value))
    decoded: Record = record(*values)
    return decoded
