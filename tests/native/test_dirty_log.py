"""The bits of a dirty log: those of the pages that were written, and no others."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.arena import SIZE, Buffer, disjoint_buffers, random_bytes, rects, shapes
from vgpud.native.dirty_log import dirty_log_rect, dirty_log_set
from vgpud.native.spans import SpanList

PAGE = 4096


@given(
    st.integers(0, 40),
    st.integers(0, 1 << 64).filter(lambda page: page < 1 << 64) | st.integers(0, 400),
    st.integers(0, 400) | st.just((1 << 64) - 1),
)
def test_the_dirty_log_gets_its_bits_and_nothing_else_does(
    size: int, first: int, pages: int
) -> None:
    memory = np.zeros(size + 16, np.uint8)
    memory[8 : 8 + size] = 0x24
    dirty_log_set(memory[8 : 8 + size], first, pages)

    bits = np.unpackbits(np.full(size, 0x24, np.uint8), bitorder="little")
    bits[min(first, bits.size) : min(first + pages, bits.size)] = 1
    assert np.array_equal(memory[8 : 8 + size], np.packbits(bits, bitorder="little"))
    assert not memory[:8].any()
    assert not memory[8 + size :].any()


def test_the_dirty_log_loses_no_bit_of_another_thread() -> None:
    log = np.zeros(256, np.uint8)

    def mark(first: int) -> None:
        for page in range(first, 2048, 4):
            dirty_log_set(log, page, 1)

    threads = [threading.Thread(target=mark, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (log == 0xFF).all()


@given(data=st.data(), buffer=disjoint_buffers())
def test_a_rectangle_marks_the_pages_that_it_is_in(data: st.DataObject, buffer: Buffer) -> None:
    spans = SpanList(buffer.spans(random_bytes(SIZE)))
    # Far from each other, or in one page; some are beyond the log.
    starts = st.integers(0, 30 * PAGE)
    guests = np.array([data.draw(starts) for _ in spans.array], np.uint64)
    rect = data.draw(shapes(buffer.size).flatmap(lambda shape: rects(buffer.size, shape)))
    log = np.zeros(3, np.uint8)

    dirty_log_rect(log, spans, guests, rect.offset, rect.stride, rect.row_bytes, rect.rows)

    lengths = spans.array["length"].tolist()
    address_of_byte = np.concatenate(
        [np.empty(0, np.int64)]
        + [int(guest) + np.arange(n) for guest, n in zip(guests, lengths, strict=True)]
    )
    bits = np.zeros(64, np.uint8)
    bits[np.minimum(address_of_byte[rect.index] // PAGE, 63)] = 1
    assert np.array_equal(np.unpackbits(log, bitorder="little"), bits[:24])


def test_a_rectangle_that_leaves_its_buffer_marks_nothing() -> None:
    spans = SpanList(Buffer(((100, 60), (10, 40))).spans(random_bytes(SIZE)))
    guests = np.zeros(2, np.uint64)
    log = np.zeros(8, np.uint8)
    for rect in ((0, 101, 101, 1), (95, 6, 6, 1), (0, 50, 10, 3), (0, 9, 10, 2)):
        with pytest.raises(ValueError):
            dirty_log_rect(log, spans, guests, *rect)
    with pytest.raises(ValueError, match="address for each span"):
        dirty_log_rect(log, spans, guests[:1], 0, 1, 1, 1)
    assert not log.any()
