"""Numbers in ascending order, of which there may be a million."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import Final

_FULL: Final = 1024
"""Numbers in a list at which it is split: moving them takes less than a microsecond."""


class SortedNumbers:
    """A set of integers, in ascending order.

    They are in lists of limited length, so that adding or removing one moves few others. Every
    operation takes microseconds, also where there are a million.
    """

    def __init__(self) -> None:
        self._lists: list[list[int]] = []  # none is empty
        self._firsts: list[int] = []  # of each list
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for numbers in self._lists:
            yield from numbers

    def __reversed__(self) -> Iterator[int]:
        for numbers in reversed(self._lists):
            yield from reversed(numbers)

    def add(self, number: int) -> None:
        """Add a number that is not in the set."""
        at = self._list_of(number)
        if at < 0:
            if self._lists:
                self._lists[0].insert(0, number)
                self._firsts[0] = number
            else:
                self._lists.append([number])
                self._firsts.append(number)
            at = 0
        else:
            insort(self._lists[at], number)
        self._count += 1
        numbers = self._lists[at]
        if len(numbers) >= _FULL:
            half = numbers[_FULL // 2 :]
            del numbers[_FULL // 2 :]
            self._lists.insert(at + 1, half)
            self._firsts.insert(at + 1, half[0])

    def remove(self, number: int) -> None:
        """Remove a number; raises KeyError if it is not in the set."""
        at = self._list_of(number)
        numbers = self._lists[at] if at >= 0 else []
        index = bisect_left(numbers, number)
        if index == len(numbers) or numbers[index] != number:
            raise KeyError(number)
        del numbers[index]
        self._count -= 1
        if not numbers:
            del self._lists[at], self._firsts[at]
        elif index == 0:
            self._firsts[at] = numbers[0]

    def before(self, number: int) -> int | None:
        """Return the greatest number that is less than this one; None if there is none."""
        at = self._list_of(number - 1)
        if at < 0:
            return None
        numbers = self._lists[at]
        return numbers[bisect_left(numbers, number) - 1]

    def part(self, start: int, stop: int) -> list[int]:
        """Return the numbers from the index `start` up to `stop`, excluded."""
        found: list[int] = []
        for numbers in self._lists:
            if start >= len(numbers):
                start -= len(numbers)
                stop -= len(numbers)
                continue
            if stop <= 0:
                break
            found += islice(numbers, start, stop)
            stop -= len(numbers)
            start = 0
        return found

    def _list_of(self, number: int) -> int:
        """Return the index of the last list that begins with this number or a smaller one; -1 if
        there is none."""
        at = bisect_left(self._firsts, number)
        return at if at < len(self._firsts) and self._firsts[at] == number else at - 1
