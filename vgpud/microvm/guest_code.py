"""The guest's code as bytes, its boot block, and the records that it reports.

Owns the border where the compiled module's structs become values; `Any` stops here. What the guest
does is told in guest.c and the files beside it, what it agrees on with the VMM in guest.h.
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
    """The micro-VM's guest did not get to its end; says where it stopped."""


class Program(IntEnum):
    """What the guest is to do."""

    FRONT_END = lib.VGPUD_PROGRAM_FRONT_END
    MEASURE = lib.VGPUD_PROGRAM_MEASURE


@dataclass(frozen=True, slots=True)
class Queue:
    """Where a virtqueue is, in guest RAM; `doorbell_va` is what the guest kicks."""

    desc: int
    avail: int
    used: int
    doorbell_va: int


@dataclass(frozen=True, slots=True)
class Boot:
    """The boot block: `vgpud_guest_boot` of guest.h.

    `rounds` and `width` x `height` pixels are the front-end's; `width` times `height` times 4 must
    be a whole number of dwords a row, and twice that, page by page, must fit into the window with a
    page to spare.
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
        """The block as the guest reads it."""
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
    """A blob is in the guest's page tables.

    `map_info` is the device's answer, `entry` the page table entry that the guest made of it for
    the first page; offset and size are in bytes of the window.
    """

    resource_id: int
    map_info: int
    offset: int
    size: int
    entry: int


@dataclass(frozen=True, slots=True)
class Written:
    """A picture was written through the window, without a flush; `crc` is of what was meant."""

    round: int
    crc: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Dma:
    """The device's CRCs, the guest's own, and the pixels that the guest read back wrong."""

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
class Image:
    """Where in the window the copy is: rows of `width` pixels of B, G, R, X without gaps."""

    offset: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Time stamp counts of `CHASE_LINES` dependent loads each.

    `hit`: write-back and cached. `miss`: write-back, just flushed. `wc`: through a mapping that
    asks for write-combining, after a first pass over it.
    """

    hit: tuple[int, ...]
    miss: tuple[int, ...]
    wc: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The guest gave up: a command's type, and the response's."""

    command: int
    response: int


@dataclass(frozen=True, slots=True)
class Done:
    """The guest has ended, one way or the other."""


Record: TypeAlias = Pat | Mapped | Written | Dma | Image | Samples | Failed | Done

_RECORDS: Final[dict[int, tuple[str, type[Any]]]] = {
    lib.VGPUD_RECORD_PAT: ("vgpud_guest_pat *", Pat),
    lib.VGPUD_RECORD_MAPPED: ("vgpud_guest_mapped *", Mapped),
    lib.VGPUD_RECORD_WRITTEN: ("vgpud_guest_written *", Written),
    lib.VGPUD_RECORD_DMA: ("vgpud_guest_dma *", Dma),
    lib.VGPUD_RECORD_IMAGE: ("vgpud_guest_image *", Image),
    lib.VGPUD_RECORD_SAMPLES: ("vgpud_guest_samples *", Samples),
    lib.VGPUD_RECORD_FAILED: ("vgpud_guest_failed *", Failed),
    lib.VGPUD_RECORD_DONE: ("", Done),
}


class RecordReader:
    """Makes records of the dwords that come out of the port."""

    def __init__(self) -> None:
        self._words = bytearray()

    def add(self, data: bytes) -> Record | None:
        """Take one dword; the record that it completes, if it does.

        Raises `GuestFailedError` for what is no record.
        """
        self._words += data
        header = int.from_bytes(self._words[:4], "little")
        kind, length = header & 0xFFFF, (header >> 16) * 4
        if kind not in _RECORDS:
            raise GuestFailedError(f"the guest reported {header:#x}, which is no record")
        if len(self._words) < 4 + length:
            return None
        payload, self._words = bytes(self._words[4:]), bytearray()
        return _decode(kind, payload)


def code() -> bytes:
    """The guest's code, which runs wherever it is put."""
    return bytes(ffi.buffer(lib.vgpud_guest_code(), lib.vgpud_guest_code_size()))


def entry() -> int:
    """Where in the code the guest starts, with the address of its boot block in rdi."""
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
