"""Shell-style patterns, as in fnmatch, whose cost does not depend on what a client writes.

To compile a regular expression takes a millisecond, and to match it may take for ever. Here, the
places in the pattern that the text so far leads to are the bits of a number, and each character
takes one step. Source: fnmatch in Python's library; Baeza-Yates and Gonnet, A New Approach to Text
Searching.
"""

from __future__ import annotations

from typing import Final, TypeAlias

MAX_CHARACTERS: Final = 256
"""Characters of which a pattern remembers where it takes them: those of all kinds of events."""

_Ranges: TypeAlias = tuple[tuple[str, str], ...]
_Token: TypeAlias = tuple[bool, _Ranges]
"""One character of the text: whether it is in one of these ranges, or in none of them."""

_ANY: Final[_Token] = False, ()


class Pattern:
    """A pattern: `*` is any text, `?` any character, `[a-z]` one of a set, `[!a-z]` any other.

    A bracket that is not closed is a character like others.
    """

    __slots__ = ("_stars", "_takes", "_tokens")

    def __init__(self, text: str) -> None:
        self._tokens: list[_Token] = []
        self._stars = 0  # bit n: there is a star before token n
        self._takes: dict[str, int] = {}  # by character, bit n: token n takes it
        place = 0
        while place < len(text):
            place = self._read(text, place)

    def matches(self, text: str) -> bool:
        """Return whether the whole text is as the pattern says."""
        states = 1  # bit n: the text so far leads to token n
        for character in text:
            states = (states & self._taking(character)) << 1 | states & self._stars
        return bool(states >> len(self._tokens))

    def _read(self, text: str, place: int) -> int:
        """Read what is at a place of the pattern, and return the next place."""
        character = text[place]
        if character == "*":
            self._stars |= 1 << len(self._tokens)
            return place + 1
        if character == "[":
            # A bracket that closes is not the first of the set.
            end = text.find("]", place + (3 if text.startswith("!", place + 1) else 2))
            if end != -1:
                self._tokens.append(_token(text[place + 1 : end]))
                return end + 1
        self._tokens.append(_ANY if character == "?" else (True, ((character, character),)))
        return place + 1

    def _taking(self, character: str) -> int:
        taking = self._takes.get(character)
        if taking is None:
            taking = 0
            for number, (among, ranges) in enumerate(self._tokens):
                if any(low <= character <= high for low, high in ranges) is among:
                    taking |= 1 << number
            if len(self._takes) < MAX_CHARACTERS:
                self._takes[character] = taking
        return taking


def _token(inside: str) -> _Token:
    """Return what a set takes, by what is between its brackets."""
    among = not inside.startswith("!")
    rest = inside if among else inside[1:]
    ranges = []
    while rest:
        if len(rest) > 2 and rest[1] == "-":
            ranges.append((rest[0], rest[2]))
            rest = rest[3:]
        else:
            ranges.append((rest[0], rest[0]))
            rest = rest[1:]
    return among, tuple(ranges)
