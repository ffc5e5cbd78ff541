"""Shared words and the dirty log."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vgpud.native.shared_words import SharedU16, full_fence


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
