"""Random commands: most are valid, and some have a wrong field.

They are made from a seed and not by hypothesis: long sequences of commands that mostly succeed
find the faults, and its generator rarely makes such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.gpu.machine import HIGH, KIB, LOW, NEXT, PAGE, REGION
from vgpud.gpu.wire import commands, dma
from vgpud.gpu.wire.command_codec import Command, decode, encode
from vgpud.gpu.wire.header import Box, Header, Rect
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.gpu.wire.protocol import ContextId, Format

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
SPOILT = 0.2  # of all commands

Pick = Callable[[Random], Any]


def one_of(*values: Any) -> Pick:
    return lambda random: random.choice(values)


def between(first: int, last: int) -> Pick:
    return lambda random: random.randint(first, last)


def build(make: Callable[..., Any], *picks: Pick) -> Pick:
    return lambda random: make(*(pick(random) for pick in picks))


def any_of(*picks: Pick) -> Pick:
    return lambda random: random.choice(picks)(random)


def several(pick: Pick, most: int) -> Pick:
    return lambda random: [pick(random) for _ in range(random.randint(0, most))]


@dataclass(frozen=True)
class Field:
    """Values that make sense, mostly, and values that do not."""

    good: Pick
    bad: Pick


BAD_WORDS = (0, 71, PAGE, 1 << 31, U32 - 1, U32)
BAD_QUADS = (*BAD_WORDS, 64 * KIB, 1 << 63, U64 - PAGE + 1, U64)
bad_word, bad_quad = one_of(*BAD_WORDS), one_of(*BAD_QUADS)
any_word, any_quad = Field(bad_word, bad_word), Field(bad_quad, bad_quad)


def word(*values: int) -> Field:
    return Field(one_of(*values), bad_word)


name, near, start, length = between(1, 6), between(0, 200), between(0, 9), between(1, 21)
flat, deep, pitch = one_of(0), one_of(1), one_of(64, 256, 300)
resource = Field(name, one_of(0, 7, U32))
output, pixel_format, side, stride = word(0, 1), word(*Format), word(30, 31, 64), word(0, 256, 300)
offset = Field(near, bad_quad)
rect = Field(
    build(Rect, start, start, length, length),
    any_of(
        build(Rect, bad_word, start, bad_word, length),
        build(Rect, start, bad_word, length, bad_word),
    ),
)
box = Field(
    build(Box, start, start, flat, length, length, deep),
    any_of(
        build(Box, start, bad_word, flat, length, bad_word, deep),
        build(Box, bad_word, start, bad_word, bad_word, length, bad_word),
    ),
)
amount = one_of(0, 1, 50, 101, PAGE, 5 * PAGE, 5 * PAGE)


def entry_list(address: Pick) -> Pick:
    piece = build(lambda *pair: pair, address, amount)
    return lambda random: mem_entries(*several(piece, 6)(random))


no_entries = build(mem_entries)
pages = one_of(LOW, LOW + 9, NEXT - 100, HIGH)
entries = Field(entry_list(pages), entry_list(one_of(0, LOW - 1, U64, NEXT + REGION - 50)))
size = Field(
    lambda random: random.randint(1, 4) * PAGE, one_of(0, PAGE + 4, 300 * PAGE, U64 - PAGE + 1)
)
window = Field(lambda random: random.randint(0, 30) * PAGE, bad_quad)

packet = any_of(
    build(dma.Nop),
    build(dma.Fill, name, near, near, bad_word),
    build(dma.Copy, name, name, near, near, near),
    build(dma.Blit, name, name, deep, pitch, pitch, near, near, length, start),
    build(dma.Crc32, name, name, near, near, near),
)
bad_packet = any_of(
    build(dma.Fill, name, bad_quad, bad_quad, bad_word),
    build(dma.Copy, name, name, bad_quad, bad_quad, near),
    build(dma.Blit, name, name, bad_word, bad_word, bad_word, near, near, length, length),
    build(dma.Blit, name, name, deep, flat, flat, near, near, bad_word, bad_word),
    build(dma.Crc32, name, resource.bad, near, bad_quad, near),
)
stream = Field(
    lambda random: dma.encode(several(packet, 4)(random)),
    lambda random: dma.encode([packet(random), bad_packet(random)]) + random.randbytes(5),
)


def planes(first: Pick, other: Pick = flat) -> Pick:
    return build(lambda *four: four, first, other, other, other)


cursor = (output, any_word, any_word, resource, any_word, any_word)

FIELDS: dict[type[Command], tuple[Field, ...]] = {
    commands.GetDisplayInfo: (),
    commands.GetEdid: (output,),
    commands.ResourceCreate2D: (resource, pixel_format, side, side),
    commands.ResourceUnref: (resource,),
    commands.SetScanout: (rect, output, resource),
    commands.ResourceFlush: (rect, resource),
    commands.TransferToHost2D: (rect, offset, resource),
    commands.ResourceAttachBacking: (resource, entries),
    commands.ResourceDetachBacking: (resource,),
    commands.GetCapsetInfo: (word(0),),
    commands.GetCapset: (word(30), word(0, 1)),
    commands.ResourceAssignUuid: (resource,),
    commands.ResourceCreateBlob: (
        *(resource, word(1, 2, 2, 2, 3), word(1, 1, 1, 2, 7), any_quad, size),
        Field(any_of(no_entries, entries.good), entries.bad),
    ),
    commands.SetScanoutBlob: (
        *(rect, output, resource, side, side, pixel_format),
        Field(planes(between(256, 300)), planes(bad_word, bad_word)),
        Field(planes(between(0, 99)), planes(bad_word, bad_word)),
    ),
    commands.CtxCreate: (word(30, 0), Field(build(bytes), lambda random: random.randbytes(64))),
    commands.CtxDestroy: (),
    commands.CtxAttachResource: (resource,),
    commands.CtxDetachResource: (resource,),
    commands.ResourceCreate3D: (
        *(resource, word(2, 5), pixel_format, any_word, side, side),
        *(word(1), word(1), word(0), word(0, 1), any_word),
    ),
    commands.TransferToHost3D: (box, offset, resource, word(0), stride, any_word),
    commands.TransferFromHost3D: (box, offset, resource, word(0), stride, any_word),
    commands.Submit3D: (stream,),
    commands.ResourceMapBlob: (resource, window),
    commands.ResourceUnmapBlob: (resource,),
    commands.UpdateCursor: cursor,
    commands.MoveCursor: cursor,
}
RARE = {commands.GetDisplayInfo, commands.GetCapset, commands.GetEdid, commands.CtxDestroy}
KINDS = [kind for kind in FIELDS for _ in range(1 if kind in RARE else 5)]


def command(random: Random, kinds: Sequence[type[Command]] = KINDS) -> Command:
    """A command as it comes out of the decoder."""
    kind = random.choice(kinds)
    header = Header(
        kind.command_type,
        random.randint(0, 3),
        bad_quad(random),
        ContextId(random.choice([1] * 8 + [2, 0])),
        random.randint(0, 255),
    )
    values = [field.good(random) for field in FIELDS[kind]]
    if values and random.random() < SPOILT:
        spoilt = random.randrange(len(values))
        values[spoilt] = FIELDS[kind][spoilt].bad(random)
    make: Callable[..., Command] = kind
    return decode(encode(make(header, *values)))
