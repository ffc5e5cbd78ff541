"""PNG files as other programs read them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.png import decode
from vgpud.gpu.display import png


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_a_picture_survives(picture: np.ndarray) -> None:
    assert np.array_equal(decode(png.encode(picture)), picture)


def test_a_picture_need_not_be_contiguous() -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    picture = pixels[..., 2::-1]
    assert np.array_equal(decode(png.encode(picture)), picture)
