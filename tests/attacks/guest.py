"""Attacks by a guest: commands that cost much, and what is left behind of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import numpy as np

from tests.attacks.stand import Attack, Stand, until
from tests.hostile.siege import MADE, MIB, NO_ENTRIES, RogueRing, command, entries
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Box, Rect
from vgpud.gpu.wire.protocol import BlobFlag, BlobMem, Flag, ResourceId

RAM: Final = 32 * MIB
"""Guest memory that no ring and no buffer is in: 64 MiB from here."""
RAM_SIZE: Final = 64 * MIB
LONG: Final = 120.0
BGRX: Final = 2


def _blob_with_backing(ring: RogueRing, blob: int, size: int) -> None:
    """Make a HOST3D_GUEST blob whose backing lists the same guest memory as often as it needs."""
    ring.context()
    pages = entries(RAM, np.full(size // RAM_SIZE or 1, min(RAM_SIZE, size)))
    kind, flags = BlobMem.HOST3D_GUEST, BlobFlag.USE_MAPPABLE
    assert ring.run(c.ResourceCreateBlob, blob, kind, flags, 0, size, pages, ctx_id=1) == MADE
    assert ring.run(c.CtxAttachResource, blob, ctx_id=1) == MADE


def _image(ring: RogueRing, image: int, width: int, height: int, pieces: int = 1) -> None:
    """Make an image, with a backing of so many pieces, scattered in guest memory."""
    assert ring.run(c.ResourceCreate2D, image, BGRX, width, height) == MADE
    size = 4 * width * height
    length = size // pieces
    assert length < RAM_SIZE
    starts = RAM + (np.arange(pieces, dtype=np.uint64)[::-1] * length) % (RAM_SIZE - length)
    assert ring.run(c.ResourceAttachBacking, image, entries(starts, length)) == MADE


def _rows(stand: Stand, seconds: float, rows: int) -> None:
    with stand.guest() as ring:
        _blob_with_backing(ring, 1, 256 * MIB)
        for kind in (c.TransferFromHost3D, c.TransferToHost3D):
            for _ in until(seconds / 2):
                box = Box(0, 0, 0, 1, rows, 1)
                ring.run(kind, box, 0, 1, 0, 1, 0, timeout=LONG, ctx_id=1)


def many_rows_of_a_byte(stand: Stand, seconds: float) -> None:
    """Transfer 2^28 rows of one byte."""
    _rows(stand, seconds, 1 << 28)


def rows_below_the_limit_of_short_work(stand: Stand, seconds: float) -> None:
    """Transfer 8 Mi rows of one byte: few bytes, many rows."""
    _rows(stand, seconds, 8 << 20)


def rows_under_the_dirty_log(stand: Stand, seconds: float) -> None:
    """Transfer from an image of 1 x 2 Mi pixels while the front-end logs writes."""
    with stand.guest() as ring:
        _image(ring, 1, 1, 2 << 20)
        ring.fe.start_log()
        for _ in until(seconds):
            box = Box(0, 0, 0, 1, 2 << 20, 1)
            ring.run(c.TransferFromHost3D, box, 0, 1, 0, 0, 0, timeout=LONG)


def scattered_backing(stand: Stand, seconds: float) -> None:
    """Transfer an image whose backing is 16 Ki pieces."""
    with stand.guest() as ring:
        _image(ring, 1, 4096, 4096, 16 << 10)
        for _ in until(seconds):
            ring.run(c.TransferToHost2D, Rect(0, 0, 4096, 4096), 0, 1, timeout=LONG)
            ring.run(c.TransferToHost2D, Rect(5, 0, 1, 4096), 20, 1, timeout=LONG)


def long_lists_of_backing_pages(stand: Stand, seconds: float) -> None:
    """Attach and detach a backing of 520,000 pages."""
    with stand.guest() as ring:
        assert ring.run(c.ResourceCreate2D, 1, BGRX, 64, 64) == MADE
        pages = entries(RAM + 4096 * (np.arange(520_000) * 7 % 16384), 4096)
        attach = ring.command(c.ResourceAttachBacking, 1, pages)
        detach = ring.command(c.ResourceDetachBacking, 1)
        for _ in until(seconds):
            for slot in (attach, detach):
                ring.offer(slot)
                ring.wait_idle(LONG)


def _streams(stand: Stand, seconds: float, packets: list[dma.Packet]) -> None:
    with stand.guest() as ring:
        ring.context()
        ring.host_blob(1, MIB)
        ring.host_blob(2, MIB)
        slot = ring.submit(packets, flags=Flag.FENCE)
        for _ in until(seconds):
            ring.offer(slot, 32)
            ring.wait_idle(LONG)


def streams_of_blits(stand: Stand, seconds: float) -> None:
    """Submit 4,096 small blits, many at a time."""
    blit = dma.Blit(ResourceId(1), ResourceId(2), 4, 64, 64, 0, 0, 1, 4)
    _streams(stand, seconds, [blit] * 4096)


def streams_of_nops(stand: Stand, seconds: float) -> None:
    """Submit 4,096 empty packets, many at a time."""
    _streams(stand, seconds, [dma.Nop()] * 4096)


def streams_that_end_with_a_bad_packet(stand: Stand, seconds: float) -> None:
    """Fill a blob, then send a packet that is refused; free the blob, and make it again."""
    with stand.guest() as ring:
        ring.context()
        fill = dma.Fill(ResourceId(1), 0, 200 * MIB, 0)
        bad = dma.Fill(ResourceId(99), 0, 4, 0)
        slot = ring.submit([fill] * 7 + [bad])
        for _ in until(seconds):
            ring.host_blob(1, 200 * MIB)
            ring.offer(slot)
            ring.wait_idle(LONG)
            assert ring.run(c.ResourceUnref, 1) == MADE


def resets_during_long_copies(stand: Stand, seconds: float) -> None:
    """Reset the driver again and again while a long copy is under way."""
    with stand.front_end() as fe:
        for _ in until(seconds):
            ring = RogueRing(fe)
            _blob_with_backing(ring, 1, 256 * MIB)
            slot = ring.command(c.TransferFromHost3D, Box(0, 0, 0, 1, 1 << 27, 1), 0, 1, 0, 1, 0)
            ring.offer(slot)
            fe.stop()
            fe.ram._next = 4096 + (16 << 20)
            for driver in fe.drivers:
                driver.reset()
            fe.start()


def writes_after_a_reset(stand: Stand, seconds: float) -> None:
    """Break the ring by an answer to nowhere while the next command copies; look for writes after
    the reset was acknowledged."""
    with stand.front_end() as fe:
        for _ in until(seconds):
            ring = RogueRing(fe)
            _blob_with_backing(ring, 1, 256 * MIB)
            data = encode(command(c.Submit3D, dma.encode([dma.Nop()] * 64), ctx_id=1))
            gpa = ring.ram.alloc(len(data))
            ring.ram.write(gpa, data)
            nowhere = ring.table([(gpa, len(data), 0), (1 << 40, 512, 2)])
            copy = ring.command(c.TransferFromHost3D, Box(0, 0, 0, 1, 1 << 27, 1), 0, 1, 0, 1, 0)
            ring.offer(nowhere, kick=False)
            ring.offer(copy)
            fe.stop()
            at = RAM
            before = b"\x77" * RAM_SIZE
            fe.ram.write(at, before)
            for _ in range(20):
                assert fe.ram.read(at, RAM_SIZE) == before, "guest memory was written after a reset"
            fe.ram._next = 4096 + (16 << 20)
            for driver in fe.drivers:
                driver.reset()
            fe.start()


def one_head_again_and_again(stand: Stand, seconds: float) -> None:
    """Offer the same waiting chain without end."""
    with stand.guest("poor", size=1024) as ring:
        ring.context()
        ring.host_blob(1, MIB)
        fill = dma.Fill(ResourceId(1), 0, MIB, 0)
        slot = ring.submit([fill] * 4000, flags=Flag.FENCE)
        [head] = ring.offer(slot)
        for _ in until(seconds):
            ring.offer(head, 512)
            if ring.broken:
                return
        raise AssertionError("the device takes a head again that it has not used")


def long_chains(stand: Stand, seconds: float) -> None:
    """Keep as many chains of 4,096 descriptors as there is room for waiting for a fence."""
    with stand.guest("poor", size=1024) as ring:
        ring.context()
        ring.host_blob(1, MIB)
        fill = dma.Fill(ResourceId(1), 0, MIB, 0)
        data = encode(command(c.Submit3D, dma.encode([fill] * 100), ctx_id=1, flags=Flag.FENCE))
        gpa = ring.ram.alloc(len(data))
        ring.ram.write(gpa, data)
        answers = [(RAM + 16 * at, 16, 2) for at in range(4000)]
        slots = [ring.table([(gpa, len(data), 0), *answers]) for _ in range(200)]
        for slot in slots:
            ring.offer(slot, kick=False)
        for _ in until(seconds):
            ring.kick()


def a_wide_scanout(stand: Stand, seconds: float) -> None:
    """Show an image of 2^26 x 1 pixels on a display, and flush it."""
    with stand.guest() as ring, ring.fe.gpu_set_socket() as display:
        display.setblocking(False)
        _image(ring, 1, 1 << 26, 1, 8)
        ring.run(c.SetScanout, Rect(0, 0, 1 << 26, 1), 0, 1)
        for _ in until(seconds):
            ring.run(c.ResourceFlush, Rect(0, 0, 1 << 26, 1), 1, timeout=LONG)
            with suppress(BlockingIOError):
                while display.recv(1 << 20):
                    pass


def a_huge_scanout(stand: Stand, seconds: float) -> None:
    """Show an image of 8192 x 8192 pixels, and flush it."""
    with stand.guest() as ring, ring.fe.gpu_set_socket() as display:
        display.setblocking(False)
        _image(ring, 1, 8192, 8192, 8)
        ring.run(c.SetScanout, Rect(0, 0, 8192, 8192), 0, 1)
        for _ in until(seconds):
            ring.run(c.ResourceFlush, Rect(0, 0, 8192, 8192), 1, timeout=LONG)
            with suppress(BlockingIOError):
                while display.recv(1 << 20):
                    pass


def outputs_of_one_image(stand: Stand, seconds: float) -> None:
    """Show one image on sixteen outputs, and paint it over and over."""
    with stand.guest() as ring, ring.fe.gpu_set_socket() as display:
        display.setblocking(False)
        _image(ring, 1, 2048, 2048)
        whole = Rect(0, 0, 2048, 2048)
        for output in range(16):
            ring.run(c.SetScanout, whole, output, 1)
        for number in until(seconds):
            ring.ram.write(RAM, bytes([number % 256]) * (16 * MIB))
            ring.run(c.TransferToHost2D, whole, 0, 1, timeout=LONG)
            ring.run(c.ResourceFlush, whole, 1, timeout=LONG)
            with suppress(BlockingIOError):
                while display.recv(1 << 20):
                    pass


def cursors(stand: Stand, seconds: float) -> None:
    """Set the cursor's image as quickly as possible, on all outputs."""
    with stand.front_end() as fe, fe.gpu_set_socket() as display:
        display.setblocking(False)
        ring, queue = RogueRing(fe), RogueRing(fe, 1)
        _image(ring, 1, 64, 64)
        slots = [queue.command(c.UpdateCursor, at, 5, 5, 1, 0, 0) for at in range(16)]
        for _ in until(seconds):
            for slot in slots:
                queue.offer(slot, 2)
            queue.wait_idle(LONG)
            with suppress(BlockingIOError):
                while display.recv(1 << 20):
                    pass


def copies_that_overlap(stand: Stand, seconds: float) -> None:
    """Copy rows of one byte within a blob, onto each other, and take checksums."""
    blob = ResourceId(1)
    blit = dma.Blit(blob, blob, 1, 16, 16, 0, 8, 1, 1 << 20)
    copy = dma.Copy(blob, blob, 0, 1, 63 * MIB)
    crc = dma.Crc32(blob, blob, 0, 63 * MIB, 0)
    with stand.guest() as ring:
        ring.context()
        ring.host_blob(1, 64 * MIB)
        slot = ring.submit([blit, copy, crc], flags=Flag.FENCE)
        for _ in until(seconds):
            ring.offer(slot, 8)
            ring.wait_idle(LONG)


def scattered_blob(stand: Stand, seconds: float) -> None:
    """Have a context work on a guest blob of 200,000 pieces."""
    pages = entries(RAM + 256 * (np.arange(200_000) * 7 % 100_000), 256)
    size = 200_000 * 256
    blob = ResourceId(1)
    with stand.guest() as ring:
        ring.context()
        ring.guest_blob(1, pages)
        fill = dma.Fill(blob, 0, size, 7)
        crc = dma.Crc32(blob, blob, 0, size, 0)
        blit = dma.Blit(blob, blob, 4, 512, 512, 0, size // 2, 3, 40_000)
        slot = ring.submit([fill, crc, blit], flags=Flag.FENCE)
        for _ in until(seconds):
            ring.offer(slot, 4)
            ring.wait_idle(LONG)


def many_mappings(stand: Stand, seconds: float) -> None:
    """Map and unmap blobs as quickly as possible."""
    count = 32
    with stand.guest() as ring:
        ring.context()
        for blob in range(1, count + 1):
            ring.host_blob(blob, 4 * MIB)
        place = [ring.command(c.ResourceMapBlob, at + 1, 4 * MIB * at) for at in range(count)]
        free = [ring.command(c.ResourceUnmapBlob, at + 1) for at in range(count)]
        for _ in until(seconds):
            for slot in (*place, *free):
                ring.offer(slot)
                ring.wait_idle(LONG)


def many_blobs(stand: Stand, seconds: float) -> None:
    """Make tens of thousands of blobs, then map and free one beside them."""
    count = 40_000
    with stand.guest() as ring:
        ring.context()
        kind, flags = BlobMem.HOST3D, BlobFlag.USE_MAPPABLE
        slot = ring.command(c.ResourceCreateBlob, 1, kind, flags, 0, 4096, NO_ENTRIES, ctx_id=1)
        for blob in range(1, count):
            ring.renumber(slot, blob)
            ring.offer(slot)
            while ring.unanswered:
                pass
        for number in until(seconds):
            blob = 1 + number % (count - 2)
            ring.run(c.ResourceMapBlob, blob, 4096 * number % (128 * MIB), timeout=LONG)
            ring.run(c.ResourceUnmapBlob, blob, timeout=LONG)


def many_contexts(stand: Stand, seconds: float) -> None:
    """Make tens of thousands of contexts, then free a resource beside them."""
    with stand.guest() as ring:
        kind = c.CtxCreate
        slot = ring.command(kind, 30, b"", ctx_id=1)
        for context in range(1, 30_000):
            ring.ram.write(ring._requests[slot] + 16, context.to_bytes(4, "little"))
            ring.offer(slot)
            while ring.unanswered:
                pass
        for _ in until(seconds):
            assert ring.run(c.ResourceCreate2D, 1, BGRX, 4, 4) == MADE
            assert ring.run(c.ResourceUnref, 1, timeout=LONG) == MADE


def resets_with_a_full_window(stand: Stand, seconds: float) -> None:
    """Fill the window, and reset."""
    with stand.front_end() as fe:
        for _ in until(seconds):
            ring = RogueRing(fe)
            ring.context()
            ring.host_blob(1, 250 * MIB)
            ring.run(c.ResourceMapBlob, 1, 0, timeout=LONG)
            fill = ring.submit([dma.Fill(ResourceId(1), 0, 250 * MIB, 1)])
            ring.offer(fill)
            ring.wait_idle(LONG)
            fe.ram._next = 4096 + (16 << 20)
            fe.reset()


def a_request_that_is_too_large(stand: Stand, seconds: float) -> None:
    """Send a well-formed SUBMIT_3D of 8.5 MiB; the ring has to go on."""
    with stand.guest() as ring:
        ring.context()
        slot = ring.command(c.Submit3D, bytes(17 * MIB // 2), ctx_id=1)
        for _ in until(seconds):
            ring.offer(slot)
            ring.wait_idle(LONG)
            assert not ring.broken
            assert ring.response(slot) >= 0x1200


GUEST_ATTACKS: Final = (
    Attack("cost", "2^28 rows of a byte", many_rows_of_a_byte),
    Attack("cost", "8 Mi rows of a byte", rows_below_the_limit_of_short_work),
    Attack("cost", "rows under the dirty log", rows_under_the_dirty_log),
    Attack("cost", "scattered backing", scattered_backing),
    Attack("cost", "520,000 backing pages", long_lists_of_backing_pages),
    Attack("cost", "streams of blits", streams_of_blits),
    Attack("cost", "streams of nops", streams_of_nops),
    Attack("memory", "streams with a bad packet", streams_that_end_with_a_bad_packet),
    Attack("memory", "resets during long copies", resets_during_long_copies),
    Attack("stop", "writes after a reset", writes_after_a_reset),
    Attack("memory", "one head again and again", one_head_again_and_again, poor=True),
    Attack("memory", "long chains", long_chains, poor=True),
    Attack("size", "a scanout of 2^26 x 1", a_wide_scanout),
    Attack("size", "a scanout of 8192 x 8192", a_huge_scanout),
    Attack("size", "one image on sixteen outputs", outputs_of_one_image),
    Attack("count", "cursors", cursors),
    Attack("cost", "copies that overlap", copies_that_overlap),
    Attack("cost", "a blob of 200,000 pieces", scattered_blob),
    Attack("count", "blobs mapped and unmapped", many_mappings),
    Attack("count", "many blobs", many_blobs),
    Attack("count", "many contexts", many_contexts),
    Attack("count", "resets with a full window", resets_with_a_full_window),
    Attack("limit", "a request that is too large", a_request_that_is_too_large),
)
