"""Columns, sizes and spans of time."""

from __future__ import annotations

import pytest

from vgpud.cli.ctl.tables import address, fitted, number, size, span, table


def test_columns_are_aligned() -> None:
    lines = list(table(("NAME", ">SIZE", "NOTE"), [("a", "1 KiB", ""), ("longer", "12 B", "x")]))
    assert lines == [
        "NAME     SIZE  NOTE",
        "a       1 KiB",
        "longer   12 B  x",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert list(table(("A", ">B"), [])) == ["A  B"]


def test_what_would_act_on_a_terminal_is_escaped() -> None:
    assert list(table(("N",), [("\x1b]0;x\x07",)])) == ["N", "\\x1b]0;x\\x07"]


@pytest.mark.parametrize(
    ("width", "shown"), [(None, "abcdef"), (6, "abcdef"), (5, "abcd…"), (1, "…"), (0, "…")]
)
def test_lines_are_cut_to_a_terminal(width: int | None, shown: str) -> None:
    assert list(fitted(["abcdef"], width)) == [shown]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (4096, "4 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (256 << 20, "256 MiB"),
        (int(1.25 * (1 << 30)), "1.25 GiB"),
        (12345678, "11.8 MiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.004, "0"),
        (0.5, "0.5"),
        (9.994, "9.99"),
        (9.996, "10"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1234.4, "1234"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (11520.5, "3 h 12 min"),
        (86400, "1 d 0 h"),
        (10 * 86400 + 7200, "10 d 2 h"),
    ],
)
def test_spans(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_addresses() -> None:
    assert [address(None), address(0), address(1 << 32)] == ["-", "0x0", "0x100000000"]
