"""Which blob lies where in a host-visible window.

The guest picks the offsets (virtio 1.3, 5.7.6.10 RESOURCE_MAP_BLOB); this decides whether they may
be had. A blob that is unmapped keeps its place, *parked*, for as long as nobody else asks for it:
most blobs are destroyed right after, and then their contents never move. Pure: it moves no memory
and imports no module that could.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from vgpud.errors import OutOfRange
from vgpud.uapi.page import PAGE_SIZE

Key = TypeVar("Key")
"""What a blob is known by."""

BLOB_ALIGNMENT: Final = PAGE_SIZE
"""Bytes. What offsets and sizes of mapped blobs are multiples of, as virtio has it: KVM and the
guest map by pages."""


@dataclass(slots=True)
class Place:
    """Where a blob lies, in bytes from the window's start; `mapped` is False for one that is
    parked."""

    offset: int
    size: int
    mapped: bool = True

    @property
    def end(self) -> int:
        return self.offset + self.size


def check_placement(offset: int, size: int, window: int) -> None:
    """Raises `OutOfRange` unless a blob of `size` bytes may lie at `offset` of the window."""
    if offset % BLOB_ALIGNMENT or size % BLOB_ALIGNMENT:
        reason = f"is not aligned to {BLOB_ALIGNMENT:#x}"
    elif size == 0 or offset + size > window:
        reason = f"is not inside the window of {window:#x}"
    else:
        return
    raise OutOfRange(f"offset {offset:#x} size {size:#x} {reason}")


class WindowMap(Generic[Key]):
    """The places of one window; no two of them overlap. Costs O(log n) a look-up with n blobs in
    it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._offsets: list[int] = []  # sorted
        self._owner: dict[int, Key] = {}  # by offset
        self._places: dict[Key, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def place(self, blob: Key) -> Place | None:
        """Where the blob lies, mapped or parked; None if it has no place."""
        return self._places.get(blob)

    def displaced_by(self, blob: Key, offset: int, size: int) -> list[Key]:
        """The parked blobs that must leave before `blob` can be put at `offset`, itself among them
        if it moves.

        Raises `OutOfRange` if the range is bad, or holds a blob that is mapped.
        """
        check_placement(offset, size, self.size)
        own = self._places.get(blob)
        displaced = []
        if own is not None:
            if own.mapped:
                raise OutOfRange(
                    f"blob {blob} is mapped already, at {own.offset:#x}",
                )
            if own.offset != offset:
                displaced.append(blob)
        # Places do not overlap, so only the last one that starts before `offset` can reach into the
        # range.
        first = max(bisect_left(self._offsets, offset) - 1, 0)
        for start in self._offsets[first : bisect_left(self._offsets, offset + size)]:
            other = self._owner[start]
            there = self._places[other]
            if other == blob or there.end <= offset:
                continue
            if there.mapped:
                raise OutOfRange(
                    f"offset {offset:#x} size {size:#x} overlaps blob {other} at {there.offset:#x}",
                )
            displaced.append(other)
        return displaced

    def free_from_end(self, size: int) -> int | None:
        """The last offset where `size` bytes can be put and nothing mapped is in the way.

        A range where nothing is parked either comes first; None if there is none at all.
        """
        for counted in (True, False):
            end = self.size - self.size % BLOB_ALIGNMENT
            for offset in reversed(self._offsets):
                place = self._places[self._owner[offset]]
                if not (counted or place.mapped):
                    continue
                if end - place.end >= size:
                    return end - size
                end = offset
            if end >= size:
                return end - size
        return None

    def put(self, blob: Key, offset: int, size: int) -> Place:
        """Maps the blob at `offset`, which `displaced_by` has found fit and everyone displaced has
        left."""
        place = self._places.get(blob)
        if place is None:
            place = self._places[blob] = Place(offset, size)
            insort(self._offsets, offset)
            self._owner[offset] = blob
        assert place.offset == offset
        place.mapped = True
        return place

    def park(self, blob: Key) -> None:
        """Unmaps the blob; it keeps its place until somebody else wants it."""
        self._places[blob].mapped = False

    def remove(self, blob: Key) -> Place:
        """Takes the blob out; returns where it was, so that its pages can be given back."""
        place = self._places.pop(blob)
        del self._owner[place.offset]
        del self._offsets[bisect_left(self._offsets, place.offset)]
        return place
