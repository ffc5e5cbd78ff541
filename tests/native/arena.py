"""A piece of memory with buffers in it, and what numpy says such buffers should hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from vgpud.native.arrays import address_of
from vgpud.native.spans import SPAN

SIZE = 4096


def random_bytes(size: int, seed: int = 1) -> NDArray[np.uint8]:
    """Bytes that repeat nowhere, the same in each run."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


@dataclass(frozen=True)
class Buffer:
    """A list of (start, length) pieces of an arena."""

    pieces: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(length for _, length in self.pieces)

    @property
    def index(self) -> NDArray[np.int64]:
        """The place in the arena of each byte of the buffer."""
        parts = [np.arange(start, start + length) for start, length in self.pieces]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def spans(self, arena: NDArray[np.uint8]) -> NDArray[np.void]:
        base = address_of(arena)
        pieces = [(base + start, length) for start, length in self.pieces]
        return np.array(pieces, SPAN)


@dataclass(frozen=True)
class Rect:
    offset: int
    stride: int
    row_bytes: int
    rows: int

    @property
    def index(self) -> NDArray[np.int64]:
        """The place in the buffer of each byte, (rows, row_bytes)."""
        rows = np.arange(self.rows)[:, None] * self.stride
        return self.offset + rows + np.arange(self.row_bytes)


@st.composite
def disjoint_buffers(draw: Callable[..., object], size: int = SIZE) -> Buffer:
    """Pieces in any order and at any alignment, none of them twice."""
    cuts = sorted(draw(st.sets(st.integers(0, size), min_size=2, max_size=12)))  # type: ignore[call-overload]
    pieces = [(start, end - start) for start, end in pairwise(cuts)]
    used = draw(st.permutations(pieces))
    count = draw(st.integers(1, len(pieces)))
    return Buffer(tuple(used[:count]))  # type: ignore[index]


@st.composite
def any_buffers(draw: Callable[..., object], size: int = SIZE) -> Buffer:
    """Pieces that may share bytes: a guest can list a page twice."""
    starts = st.integers(0, size - 1)
    pieces: Sequence[tuple[int, int]] = draw(  # type: ignore[assignment]
        st.lists(starts.flatmap(lambda s: st.tuples(st.just(s), st.integers(1, size - s))),
                 min_size=1, max_size=5)
    )  # fmt: skip
    return Buffer(tuple(pieces))


@st.composite
def shapes(draw: Callable[..., int], size: int) -> tuple[int, int]:
    """Bytes a row and rows that fit into `size` bytes."""
    rows = draw(st.integers(1, min(size, 40)))
    return draw(st.integers(1, size // rows)), rows


@st.composite
def rects(draw: Callable[..., int], size: int, shape: tuple[int, int]) -> Rect:
    """A place for a shape in a buffer of `size` bytes."""
    row_bytes, rows = shape
    most = size if rows == 1 else (size - row_bytes) // (rows - 1)
    stride = draw(st.integers(row_bytes, max(row_bytes, most)))
    length = (rows - 1) * stride + row_bytes
    return Rect(draw(st.integers(0, size - length)), stride, row_bytes, rows)
