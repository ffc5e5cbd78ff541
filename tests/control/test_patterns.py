"""Shell-style patterns: the same as those of Python's library, at a cost that is bounded."""

from __future__ import annotations

import random
import time
from fnmatch import fnmatchcase

import pytest

from vgpud.control.patterns import Pattern

KINDS = (
    "slot.set",
    "device.front-end-connected",
    "gpu.added",
    "a",
    "",
    "]",
    "!",
    "[x]",
    "-",
    "a\nb",
)


@pytest.mark.parametrize(
    "text",
    [
        *("*", "slot.*", "?", "??*", "*.set", "gpu.added", "s*t.s*t", "**", "*a*d*"),
        *("[a-s]lot.set", "[!t]lot.set", "[]]", "[!]]", "[!]", "[", "[]", "[z-a]", "[!z-a]"),
        *("[-]", "[a-]", "[!-]", "[[]x]", "*[!.]?", "a?b", "[!!]", "[a", "?[", "[]-a]"),
    ],
)
def test_a_pattern_matches_what_it_says(text: str) -> None:
    pattern = Pattern(text)
    for kind in KINDS:
        assert pattern.matches(kind) == fnmatchcase(kind, text), kind


def test_any_pattern_is_as_in_the_library() -> None:
    random.seed(1)
    for _ in range(3000):
        text = "".join(random.choices("ab*?[]!-", k=random.randrange(9)))
        pattern = Pattern(text)
        for _ in range(5):
            kind = "".join(random.choices("ab-!]", k=random.randrange(6)))
            assert pattern.matches(kind) == fnmatchcase(kind, text), (text, kind)


@pytest.mark.parametrize("text", ["*a" * 31, "?*" * 31, "[!b]*" * 12, "*" * 63])
def test_no_pattern_takes_long(text: str) -> None:
    began = time.thread_time()
    for _ in range(100):
        Pattern(text).matches("a" * 63)
    assert time.thread_time() - began < 0.5
