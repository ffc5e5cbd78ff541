"""The timed copies of `vgpud bench`: each way copies what it should, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vgpud.native.copies import CopySource, Way, seconds
from vgpud.native.cpu import cpu_features, limit_cpu_features

ROWS, ROW_BYTES, STRIDE = 7, 1000, 1300
WAYS = [way for way in Way if way is not Way.MEMCPY_CLWB or "clwb" in cpu_features()]


def rows(fill: int) -> tuple[np.ndarray, np.ndarray]:
    """All bytes, and the rows among them."""
    whole = np.full((ROWS, STRIDE), fill, np.uint8)
    return whole, whole[:, :ROW_BYTES]


@pytest.mark.parametrize("source", CopySource)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [1, 3])
def test_each_way_copies_the_rows_and_leaves_the_gaps(
    way: Way, source: CopySource, times: int
) -> None:
    (_, from_), (whole, to) = rows(1), rows(2)
    from_[:] = np.random.default_rng(1).integers(0, 256, from_.shape, np.uint8)
    spent = seconds(way, source, to, from_, times)
    assert 0 <= spent < 1
    assert np.array_equal(to, from_)
    assert (whole[:, ROW_BYTES:] == 2).all()


def test_time_is_that_of_one_copy() -> None:
    to, from_ = np.zeros((2, 1, 4 << 20), np.uint8)
    once = min(seconds(Way.MEMCPY, CopySource.CACHE, to, from_, 1) for _ in range(9))
    often = min(seconds(Way.MEMCPY, CopySource.CACHE, to, from_, 20) for _ in range(3))
    assert once / 5 < often < once * 5


def test_an_instruction_that_is_not_there_is_refused() -> None:
    limit_cpu_features({"clflushopt"})
    try:
        with pytest.raises(ValueError, match="no clwb"):
            seconds(Way.MEMCPY_CLWB, CopySource.CACHE, rows(1)[1], rows(2)[1], 1)
    finally:
        limit_cpu_features()


@pytest.mark.parametrize("times", [0, -1])
def test_no_copy_is_no_measurement(times: int) -> None:
    with pytest.raises(ValueError, match="nothing to copy"):
        seconds(
            Way.MEMCPY,
            CopySource.CACHE,
            np.zeros((1, 8), np.uint8),
            np.ones((1, 8), np.uint8),
            times,
        )


@pytest.mark.parametrize(
    "to",
    [
        np.zeros((1, 9), np.uint8),
        np.zeros((2, 4), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((1, 16), np.uint8)[:, ::2],
        np.broadcast_to(np.zeros(8, np.uint8), (1, 8)),
    ],
)
def test_what_does_not_fit_is_refused(to: np.ndarray) -> None:
    with pytest.raises(ValueError):
        seconds(Way.MEMCPY, CopySource.CACHE, to, np.ones((1, 8), np.uint8), 1)
