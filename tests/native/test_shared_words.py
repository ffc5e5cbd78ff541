"""Shared words and the dirty log."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.native.shared_words import SharedU16, dirty_log_set, full_fence


def test_a_shared_word_is_little_endian_and_where_it_was_bound() -> None:
    ring = np.zeros(8, np.uint8)
    word = SharedU16(ring, 2)
    word.store(0x1234)
    assert ring.tolist() == [0, 0, 0x34, 0x12, 0, 0, 0, 0]
    ring[3] = 0xFF
    assert word.load() == 0xFF34
    SharedU16(ring, 6).store(0x1_0002)
    assert ring[6:].tolist() == [2, 0]


@pytest.mark.parametrize("offset", [-2, 7, 8, 1 << 64])
def test_a_word_outside_its_array(offset: int) -> None:
    with pytest.raises(IndexError):
        SharedU16(np.zeros(8, np.uint8), offset)


def test_words_that_would_not_be_atomic_or_writable() -> None:
    ring = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="aligned"):
        SharedU16(ring, 1)
    with pytest.raises(ValueError):
        SharedU16(ring[::2], 0)
    ring.flags.writeable = False
    with pytest.raises(ValueError):
        SharedU16(ring, 0)


def test_a_word_keeps_its_array_alive() -> None:
    word = SharedU16(np.full(1 << 20, 7, np.uint8), (1 << 20) - 2)
    filler = [np.zeros(1 << 20, np.uint8) for _ in range(4)]
    assert word.load() == 0x0707
    assert filler


def test_what_was_written_before_a_store_is_seen_after_its_load() -> None:
    data, index = np.zeros(1 << 15, np.uint8), np.zeros(2, np.uint8)
    published = SharedU16(index)

    def produce() -> None:
        for count in range(1, 3000):
            data[count] = count % 251
            published.store(count)

    producer = threading.Thread(target=produce)
    producer.start()
    seen = 0
    while seen < 2999:
        seen = published.load()
        assert data[seen] == seen % 251
    producer.join()
    full_fence()


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
