"""The measurement of copies: the form of its figures, and its output, by a small one."""

from __future__ import annotations

import pytest

from vgpud.cli.bench.copy import CopyCosts, CopyRow, Shape, measure
from vgpud.native.cpu import cpu_features

SHAPES = (Shape("small", 1, 4096, 4096), Shape("strided", 16, 4000, 5120))


@pytest.fixture(scope="module")
def rows() -> list[CopyRow]:
    """Two shapes, three turns."""
    return measure(SHAPES, turns=3)


def test_each_way_is_measured_with_each_shape(rows: list[CopyRow]) -> None:
    for direction, count in (("write", 5), ("read", 7)):
        for shape in SHAPES:
            found = [r for r in rows if (r.direction, r.shape) == (direction, shape.name)]
            ways = [row.way for row in found]
            assert ways[:2] == ["memcpy", "no-snoop"]
            missing = direction == "write" and "clwb" not in cpu_features()
            assert len(set(ways)) == len(ways) == count - missing
            assert found[0].ratio == 1.0
            for row in found:
                assert row.size == shape.size
                assert 0 < row.speed.lower <= row.speed.median <= row.speed.upper < 2000
                assert row.ratio > 0


def test_the_table_and_the_charts(rows: list[CopyRow]) -> None:
    costs = CopyCosts(tuple(rows))
    lines = list(costs.lines())
    assert max(map(len, lines)) <= 100
    assert [line.strip() for line in lines if line[2] != " "][1:] == [
        f"{direction}, {shape.name}" for direction in ("write", "read") for shape in SHAPES
    ]
    assert [len(chart.bars) for chart in costs.charts()] == [
        len([row for row in rows if row.direction == direction and row.shape == shape.name])
        for direction in ("write", "read")
        for shape in SHAPES
    ]
    assert costs.to_json()[0]["speed"].keys() == {"median", "lower", "upper"}
