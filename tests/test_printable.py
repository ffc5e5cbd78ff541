"""Text that is safe for terminals and logs."""

from __future__ import annotations

import pytest

from vgpud.printable import printable


@pytest.mark.parametrize("text", ["", "Grün, 12 µs", "日本語", "a\\b"])
def test_what_can_be_printed_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\x1b[2J\nb\u202e", "a\\x1b[2J\\nb\\u202e"),
        ("\r\x85\u2028\u2029\x0b", "\\r\\x85\\u2028\\u2029\\x0b"),
        ("\udcff\x00\x7f", "\\udcff\\x00\\x7f"),
    ],
)
def test_what_acts_on_a_terminal_or_ends_a_line_is_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped
    assert len(printable(text).splitlines()) == 1
