"""The placements of blobs in a host-visible window.

The guest chooses the offsets (virtio 1.3, 5.7.6.9 RESOURCE_MAP_BLOB), and the map decides whether
a placement is allowed. A blob that is unmapped is *parked*: it keeps its placement until another
blob needs the range. Most blobs are destroyed right after they are unmapped, so their contents need
not be moved. A placement whose memory others have is *reserved*: no other blob comes there, also
after the blob was removed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from vgpud.errors import OutOfRange
from vgpud.sorted_numbers import SortedNumbers
from vgpud.uapi.page import PAGE_SIZE

Key = TypeVar("Key")
"""The key of a blob."""

BLOB_ALIGNMENT: Final = PAGE_SIZE
"""Bytes. Offsets and sizes of mapped blobs are multiples of it: KVM and the guest map pages."""

_SEARCH_STEP: Final = 256
"""Placements that a search looks at in one step: it takes about 0.1 ms."""


@dataclass(slots=True)
class Placement:
    """A blob's range, in bytes from the window's start; `mapped` is False for a parked blob."""

    offset: int
    size: int
    mapped: bool = True
    reserved: bool = False

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
        self._at: dict[int, tuple[Key | None, Placement]] = {}  # by offset; None: removed
        self._placements: dict[Key, Placement] = {}
        self._taken = SortedNumbers()  # offsets that are mapped or reserved
        self._parked = SortedNumbers()  # offsets of the other blobs

    def __len__(self) -> int:
        return len(self._placements)

    def placement(self, blob: Key) -> Placement | None:
        """Return the blob's placement, mapped or parked; None if it has none."""
        return self._placements.get(blob)

    def check(self, blob: Key, offset: int, size: int) -> None:
        """Raise `OutOfRange` unless `blob` can be put at `offset` once the parked blobs there, and
        the blob itself if it is parked elsewhere, have been removed.

        The range must be allowed, and overlap no mapped blob and no reserved range of another.
        """
        check_placement(offset, size, self.size)
        own = self._placements.get(blob)
        if own is not None and own.mapped:
            raise OutOfRange(f"blob {blob} is mapped already, at {own.offset:#x}")
        # Placements do not overlap, so only the last that starts before the end can reach into it,
        # or the one before that if the last is the blob's own.
        end = offset + size
        while (last := self._taken.before(end)) is not None and self._at[last][1].end > offset:
            other, there = self._at[last]
            if other != blob:
                raise _overlap(offset, size, other, there)
            end = last

    def displaced_by(self, blob: Key, offset: int, size: int) -> Iterator[Key]:
        """Yield the parked blobs that must be removed before `blob` can be put at `offset`.

        `blob` itself is among them if it moves. They may be removed meanwhile. `check` must have
        allowed the range.
        """
        own = self._placements.get(blob)
        if own is not None and own.offset != offset:
            yield blob
        end = offset + size
        while (start := self._parked.before(end)) is not None:
            other, there = self._at[start]
            if there.end <= offset:
                return
            end = start
            if other is not None and other != blob:
                yield other

    def free_from_end(self, size: int) -> Generator[None, None, int | None]:
        """Search for the last offset at which `size` bytes overlap nothing that is mapped or
        reserved; the last step returns it, or None.

        A range without parked blobs is preferred. Nothing may change between the steps.
        """
        found = yield from self._last_gap(size, _merged(self._taken, self._parked))
        if found is None and len(self._parked):
            found = yield from self._last_gap(size, reversed(self._taken))
        return found

    def _last_gap(self, size: int, offsets: Iterator[int]) -> Generator[None, None, int | None]:
        end = self.size - self.size % BLOB_ALIGNMENT
        for count, offset in enumerate(offsets):
            if end - self._at[offset][1].end >= size:
                return end - size
            end = offset
            if count % _SEARCH_STEP == 0:
                yield
        return end - size if end >= size else None

    def put(self, blob: Key, offset: int, size: int) -> Placement:
        """Map the blob at `offset`, and return its placement.

        `check` must have allowed that, and all displaced blobs must have been removed.
        """
        placement = self._placements.get(blob)
        if placement is None:
            placement = self._placements[blob] = Placement(offset, size)
            self._at[offset] = blob, placement
            self._taken.add(offset)
        else:
            assert placement.offset == offset
            self._set_mapped(placement, mapped=True)
        return placement

    def park(self, blob: Key) -> None:
        """Unmap the blob, which keeps its placement until another blob needs the range."""
        self._set_mapped(self._placements[blob], mapped=False)

    def reserve(self, blob: Key) -> None:
        """Let no other blob come to where this one is, also after it was removed."""
        placement = self._placements[blob]
        if not (placement.mapped or placement.reserved):
            self._parked.remove(placement.offset)
            self._taken.add(placement.offset)
        placement.reserved = True

    def remove(self, blob: Key) -> Placement:
        """Remove the blob and return its former placement, whose pages can be freed."""
        placement = self._placements.pop(blob)
        if placement.reserved:
            self._at[placement.offset] = None, placement
            return placement
        (self._taken if placement.mapped else self._parked).remove(placement.offset)
        del self._at[placement.offset]
        return placement

    def _set_mapped(self, placement: Placement, *, mapped: bool) -> None:
        if placement.mapped is not mapped and not placement.reserved:
            former, latter = self._parked, self._taken
            if not mapped:
                former, latter = latter, former
            former.remove(placement.offset)
            latter.add(placement.offset)
        placement.mapped = mapped


def _overlap(offset: int, size: int, blob: object, there: Placement) -> OutOfRange:
    what = f"offset {offset:#x} size {size:#x} overlaps"
    if there.reserved:
        return OutOfRange(
            f"{what} the range at {there.offset:#x}, which was exported: no other blob comes there"
            ' before the device is reset; with layout = "per-blob", exports take no range'
        )
    return OutOfRange(f"{what} blob {blob} at {there.offset:#x}")


def _merged(some: SortedNumbers, others: SortedNumbers) -> Iterator[int]:
    """Yield the numbers of both, descending."""
    one, two = reversed(some), reversed(others)
    first, second = next(one, None), next(two, None)
    while first is not None or second is not None:
        if second is None or (first is not None and first > second):
            assert first is not None
            yield first
            first = next(one, None)
        else:
            yield second
            second = next(two, None)
