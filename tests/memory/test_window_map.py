"""Placements in a window, compared with a model of each page's owner."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vgpud.errors import OutOfRange
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.memory.window_map import BLOB_ALIGNMENT, Placement, WindowMap, check_placement

PAGES = 16
WINDOW = PAGES * BLOB_ALIGNMENT
BLOBS = st.integers(1, 6).map(ResourceId)


@dataclass
class Model:
    page: int
    pages: int
    mapped: bool

    @property
    def range(self) -> range:
        return range(self.page, self.page + self.pages)


class Windows(RuleBasedStateMachine):
    """Blobs come, move, are parked and go, as a guest asks; page by page the model knows where."""

    def __init__(self) -> None:
        super().__init__()
        self.map = WindowMap[ResourceId](WINDOW)
        self.model: dict[ResourceId, Model] = {}

    @rule(blob=BLOBS, page=st.integers(0, PAGES), pages=st.integers(0, 6))
    def ask(self, blob: ResourceId, page: int, pages: int) -> None:
        """Wherever it is put, everyone in the way is told of, or it can't be put there."""
        own = self.model.get(blob)
        if own is not None:
            pages = own.pages  # a blob's size never changes
        asked = set(range(page, page + pages))
        in_the_way = {
            other: place
            for other, place in self.model.items()
            if other != blob and asked & set(place.range)
        }
        fits = asked and page + pages <= PAGES
        taken = any(place.mapped for place in in_the_way.values()) or (own and own.mapped)
        offset, size = page * BLOB_ALIGNMENT, pages * BLOB_ALIGNMENT
        if not fits or taken:
            with pytest.raises(OutOfRange):
                self.map.check(blob, offset, size)
            return
        self.map.check(blob, offset, size)
        displaced = list(self.map.displaced_by(blob, offset, size))
        moves = own is not None and own.page != page
        assert len(displaced) == len(set(displaced))
        assert set(displaced) == {*in_the_way, *([blob] if moves else [])}
        for other in displaced:
            place = self.map.remove(other)
            was = self.model.pop(other)
            assert (place.offset, place.size) == (
                was.page * BLOB_ALIGNMENT,
                was.pages * BLOB_ALIGNMENT,
            )
        assert self.map.put(blob, offset, size) == Placement(offset, size, mapped=True)
        self.model[blob] = Model(page, pages, mapped=True)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def ask_again_for_the_same_place(self, data: st.DataObject) -> None:
        """A parked blob comes back to where it was without anyone moving, unless it was taken."""
        blob = data.draw(st.sampled_from(sorted(self.model)))
        self.ask(blob, self.model[blob].page, 0)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        blob = data.draw(st.sampled_from(sorted(self.model)))
        self.map.park(blob)
        self.model[blob].mapped = False

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        blob = data.draw(st.sampled_from(sorted(self.model)))
        self.map.remove(blob)
        del self.model[blob]

    @invariant()
    def everyone_is_where_the_model_says(self) -> None:
        assert len(self.map) == len(self.model)
        for number in range(1, 7):
            blob = ResourceId(number)
            place, model = self.map.placement(blob), self.model.get(blob)
            if model is None:
                assert place is None
                continue
            assert place == Placement(
                model.page * BLOB_ALIGNMENT, model.pages * BLOB_ALIGNMENT, model.mapped
            )
            assert place.end == place.offset + place.size

    @invariant()
    def no_two_overlap(self) -> None:
        pages = [page for place in self.model.values() for page in place.range]
        assert len(pages) == len(set(pages))


TestWindows = Windows.TestCase
TestWindows.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

PAGE = BLOB_ALIGNMENT


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, PAGE), (0, WINDOW), (WINDOW - PAGE, PAGE), (PAGE, WINDOW - PAGE)],
)
def test_placements_that_are_inside(offset: int, size: int) -> None:
    check_placement(offset, size, WINDOW)
    window = WindowMap[ResourceId](WINDOW)
    window.check(ResourceId(1), offset, size)
    assert list(window.displaced_by(ResourceId(1), offset, size)) == []


@pytest.mark.parametrize(
    ("offset", "size", "reason"),
    [
        (1, PAGE, "aligned"),
        (PAGE // 2, PAGE, "aligned"),
        (0, PAGE + 1, "aligned"),
        (0, PAGE - 1, "aligned"),
        ((1 << 64) - 1, PAGE, "aligned"),
        (0, 0, "inside"),
        (WINDOW, 0, "inside"),
        (WINDOW, PAGE, "inside"),
        (WINDOW - PAGE, 2 * PAGE, "inside"),
        (0, WINDOW + PAGE, "inside"),
        ((1 << 64) - PAGE, PAGE, "inside"),
        ((1 << 64) - PAGE, 2 * PAGE, "inside"),
        (PAGE, (1 << 64) - PAGE, "inside"),
    ],
)
def test_placements_that_are_not(offset: int, size: int, reason: str) -> None:
    with pytest.raises(OutOfRange, match=reason):
        check_placement(offset, size, WINDOW)
    with pytest.raises(OutOfRange, match=reason):
        WindowMap[ResourceId](WINDOW).check(ResourceId(1), offset, size)


def test_asking_changes_nothing() -> None:
    window = WindowMap[ResourceId](WINDOW)
    for number in (1, 2):
        window.put(ResourceId(number), number * PAGE, PAGE)
        window.park(ResourceId(number))
    for _ in range(2):
        window.check(ResourceId(3), 0, 3 * PAGE)
        displaced = window.displaced_by(ResourceId(3), 0, 3 * PAGE)
        assert list(displaced) == [ResourceId(2), ResourceId(1)]
    assert window.placement(ResourceId(1)) == Placement(PAGE, PAGE, mapped=False)
    assert window.placement(ResourceId(3)) is None


def test_parked_blobs_may_be_removed_while_they_are_listed() -> None:
    window = WindowMap[ResourceId](WINDOW)
    for number in range(16):
        window.put(ResourceId(number + 1), number * PAGE, PAGE)
        window.park(ResourceId(number + 1))
    for other in window.displaced_by(ResourceId(99), 2 * PAGE, 10 * PAGE):
        window.remove(other)
    assert len(window) == 6


def free(window: WindowMap[ResourceId], size: int) -> int | None:
    search = window.free_from_end(size)
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: int | None = end.value
            return found


def test_free_places_are_found_from_the_end_down() -> None:
    window = WindowMap[ResourceId](16 * PAGE)
    assert free(window, PAGE) == 15 * PAGE
    assert free(window, 16 * PAGE) == 0
    assert free(window, 17 * PAGE) is None
    window.put(ResourceId(1), 12 * PAGE, 2 * PAGE)
    assert free(window, 2 * PAGE) == 14 * PAGE
    assert free(window, 3 * PAGE) == 9 * PAGE
    window.put(ResourceId(2), 0, PAGE)
    assert free(window, 11 * PAGE) == PAGE
    assert free(window, 12 * PAGE) is None
    window.park(ResourceId(1))
    # Where nobody would have to move comes first.
    assert free(window, 3 * PAGE) == 9 * PAGE
    assert free(window, 12 * PAGE) == 4 * PAGE


def test_to_a_reserved_range_no_other_blob_comes() -> None:
    window = WindowMap[ResourceId](16 * PAGE)
    first, second = ResourceId(1), ResourceId(2)
    window.put(first, 4 * PAGE, 4 * PAGE)
    window.reserve(first)
    window.park(first)
    for offset, pages in ((4, 1), (2, 3), (7, 2), (0, 16)):
        with pytest.raises(OutOfRange, match="which was exported"):
            window.check(second, offset * PAGE, pages * PAGE)
    window.check(first, 4 * PAGE, 4 * PAGE)
    window.put(first, 4 * PAGE, 4 * PAGE)  # it may come back itself
    window.park(first)
    window.check(first, 6 * PAGE, 4 * PAGE)  # and move
    assert list(window.displaced_by(first, 6 * PAGE, 4 * PAGE)) == [first]
    window.remove(first)
    assert window.placement(first) is None
    for blob in (first, second):
        with pytest.raises(OutOfRange, match="which was exported"):
            window.check(blob, 6 * PAGE, 4 * PAGE)
    assert free(window, 8 * PAGE) == 8 * PAGE
    assert free(window, 9 * PAGE) is None
    window.put(second, 8 * PAGE, 4 * PAGE)
    window.remove(second)
    assert free(window, 4 * PAGE) == 12 * PAGE
