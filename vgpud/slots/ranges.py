"""Look-ups in a table of thousands of slots: by address, and by the pages of files.

The latter serve the rule that one page has one memory type.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from vgpud.slots.entries import Entry, Slot
from vgpud.sorted_numbers import SortedNumbers


class Ranges:
    """Entries that do not overlap, sorted by offset; a look-up takes O(log n)."""

    def __init__(self) -> None:
        self._offsets = SortedNumbers()
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Entry]:
        return (self._entries[offset] for offset in self._offsets)

    def part(self, start: int, stop: int) -> list[Entry]:
        """Return a part of the entries, in the order of their offsets."""
        return [self._entries[offset] for offset in self._offsets.part(start, stop)]

    def at(self, offset: int) -> Entry | None:
        return self._entries.get(offset)

    def overlapping(self, offset: int, size: int) -> Entry | None:
        """Return the last entry that has a byte of the range."""
        last = self._offsets.before(offset + size)
        if last is None:
            return None
        entry = self._entries[last]
        return entry if entry.end > offset else None

    def insert(self, entry: Entry) -> None:
        self._offsets.add(entry.offset)
        self._entries[entry.offset] = entry

    def delete(self, entry: Entry) -> None:
        self._offsets.remove(entry.offset)
        del self._entries[entry.offset]


class Pages:
    """The files' pages that are in slots, by file and memory type.

    Pages may be in several slots if all of these have one memory type: a processor's behaviour is
    undefined for memory that it accesses with two (Intel SDM vol. 3, 13.12.4 "Programming the
    PAT").
    """

    def __init__(self) -> None:
        self._uses: dict[tuple[tuple[int, int], bool], _FilePages] = {}

    def of_other_type(self, entry: Entry) -> Slot | None:
        """Return a slot that has some of the entry's pages with another memory type, or None."""
        other = self._uses.get((entry.backing.file, not entry.non_coherent))
        return other.overlapping(entry.backing.offset, entry.size) if other is not None else None

    def insert(self, entry: Entry) -> None:
        key = entry.backing.file, entry.non_coherent
        self._uses.setdefault(key, _FilePages()).insert(entry)

    def delete(self, entry: Entry) -> None:
        key = entry.backing.file, entry.non_coherent
        pages = self._uses[key]
        pages.delete(entry)
        if not pages:
            del self._uses[key]


class _FilePages:
    """Ranges of one file, which may overlap."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, Slot]] = []  # start, end, slot; sorted
        self._longest = 0

    def __len__(self) -> int:
        return len(self._ranges)

    def overlapping(self, start: int, size: int) -> Slot | None:
        # A range that starts earlier than the longest one is long can't reach `start`.
        first = bisect_left(self._ranges, (start - self._longest,))
        for _, end, slot in self._ranges[first : bisect_left(self._ranges, (start + size,))]:
            if end > start:
                return slot
        return None

    def insert(self, entry: Entry) -> None:
        insort(self._ranges, self._range(entry))
        self._longest = max(self._longest, entry.size)

    def delete(self, entry: Entry) -> None:
        del self._ranges[bisect_left(self._ranges, self._range(entry))]

    @staticmethod
    def _range(entry: Entry) -> tuple[int, int, Slot]:
        start = entry.backing.offset
        return start, start + entry.size, entry.slot
