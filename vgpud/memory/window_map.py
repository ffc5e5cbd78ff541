"""The placements of blobs in a host-visible window.

The guest chooses the offsets (virtio 1.3, 5.7.6.9 RESOURCE_MAP_BLOB), and the map decides whether
a placement is allowed. A blob that is unmapped is *parked*: it keeps its placement until another
blob needs the range. Most blobs are destroyed right after they are unmapped, so their contents need
not be moved.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from vgpud.errors import OutOfRange
from vgpud.uapi.page import PAGE_SIZE

Key = TypeVar("Key")
"""The key of a blob."""

BLOB_ALIGNMENT: Final = PAGE_SIZE
"""Bytes. Offsets and sizes of mapped blobs are multiples of it: KVM and the guest map pages."""


@dataclass(slots=True)
class Placement:
    """A blob's range, in bytes from the window's start; `mapped` is False for a parked blob."""

    offset: int
    size: int
    mapped: bool = True

    @property
    def end(self) -> int:
        return self.offset + self.size


def check_placement(offset: int, size: int, window: int) -> None:
    """Raise `OutOfRange` unless a blob of `size` bytes can be at `offset` of the window."""
    if offset % BLOB_ALIGNMENT or size % BLOB_ALIGNMENT:
        reason = f"is not aligned to {BLOB_ALIGNMENT:#x}"
    elif size == 0 or offset + size > window:
        reason = f"is not inside the window of {window:#x}"
    else:
        return
    raise OutOfRange(f"offset {offset:#x} size {size:#x} {reason}")


class WindowMap(Generic[Key]):
    """The placements of one window, which do not overlap; a look-up takes O(log n)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._offsets: list[int] = []  # sorted
        self._owner: dict[int, Key] = {}  # by offset
        self._placements: dict[Key, Placement] = {}

    def __len__(self) -> int:
        return len(self._placements)

    def placement(self, blob: Key) -> Placement | None:
        """Return the blob's placement, mapped or parked; None if it has none."""
        return self._placements.get(blob)

    def displaced_by(self, blob: Key, offset: int, size: int) -> list[Key]:
        """Return the parked blobs that must be removed before `blob` can be put at `offset`.

        `blob` itself is among them if it moves. Raises `OutOfRange` if the range is not allowed, if
        it overlaps a mapped blob, or if `blob` is mapped already.
        """
        check_placement(offset, size, self.size)
        own = self._placements.get(blob)
        displaced = []
        if own is not None:
            if own.mapped:
                raise OutOfRange(
                    f"blob {blob} is mapped already, at {own.offset:#x}",
                )
            if own.offset != offset:
                displaced.append(blob)
        # Placements do not overlap, so of those that start before `offset` only the last can reach
        # into the range.
        first = max(bisect_left(self._offsets, offset) - 1, 0)
        for start in self._offsets[first : bisect_left(self._offsets, offset + size)]:
            other = self._owner[start]
            there = self._placements[other]
            if other == blob or there.end <= offset:
                continue
            if there.mapped:
                raise OutOfRange(
                    f"offset {offset:#x} size {size:#x} overlaps blob {other} at {there.offset:#x}",
                )
            displaced.append(other)
        return displaced

    def free_from_end(self, size: int) -> int | None:
        """Return the last offset at which `size` bytes overlap no mapped blob.

        A range without parked blobs is preferred. None if there is no such range.
        """
        for count_parked in (True, False):
            end = self.size - self.size % BLOB_ALIGNMENT
            for offset in reversed(self._offsets):
                placement = self._placements[self._owner[offset]]
                if not (count_parked or placement.mapped):
                    continue
                if end - placement.end >= size:
                    return end - size
                end = offset
            if end >= size:
                return end - size
        return None

    def put(self, blob: Key, offset: int, size: int) -> Placement:
        """Map the blob at `offset`, and return its placement.

        `displaced_by` must have allowed that, and all displaced blobs must have been removed.
        """
        placement = self._placements.get(blob)
        if placement is None:
            placement = self._placements[blob] = Placement(offset, size)
            insort(self._offsets, offset)
            self._owner[offset] = blob
        assert placement.offset == offset
        placement.mapped = True
        return placement

    def park(self, blob: Key) -> None:
        """Unmap the blob, which keeps its placement until another blob needs the range."""
        self._placements[blob].mapped = False

    def remove(self, blob: Key) -> Placement:
        """Remove the blob and return its former placement, whose pages can be freed."""
        placement = self._placements.pop(blob)
        del self._owner[placement.offset]
        del self._offsets[bisect_left(self._offsets, placement.offset)]
        return placement
