"""Slot policies: which rule decides for a blob, and whether a device's rules agree on a layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.coherency.slot_policy import (
    DEFAULT_RULE,
    BlobKind,
    Fallback,
    Layout,
    Match,
    MemoryType,
    Rule,
    first_match,
    layouts,
)
from vgpud.uapi.page import PAGE_SIZE

UC = Rule(memory_type=MemoryType.UC)
SMALL = Rule(Match(max_size=2 * PAGE_SIZE), memory_type=MemoryType.WB)
SHADOWED = Rule(Match(blob=BlobKind.HOST3D_GUEST), fallback=Fallback.REFUSE)
OTHERS = Rule(Match(device="gpu[1-9]*"), layout=Layout.PER_BLOB)


@pytest.mark.parametrize(
    ("rules", "device", "blob", "size", "expected"),
    [
        ([], "gpu0", BlobKind.HOST3D, PAGE_SIZE, DEFAULT_RULE),
        ([UC], "gpu0", BlobKind.HOST3D, PAGE_SIZE, UC),
        ([SMALL, UC], "gpu0", BlobKind.HOST3D, 2 * PAGE_SIZE, SMALL),
        ([SMALL, UC], "gpu0", BlobKind.HOST3D, 2 * PAGE_SIZE + 1, UC),
        ([UC, SMALL], "gpu0", BlobKind.HOST3D, PAGE_SIZE, UC),
        ([SMALL], "gpu0", BlobKind.HOST3D, 3 * PAGE_SIZE, DEFAULT_RULE),
        ([SHADOWED, UC], "gpu0", BlobKind.HOST3D_GUEST, PAGE_SIZE, SHADOWED),
        ([SHADOWED, UC], "gpu0", BlobKind.HOST3D, PAGE_SIZE, UC),
        ([OTHERS, UC], "gpu0", BlobKind.HOST3D, PAGE_SIZE, UC),
        ([OTHERS, UC], "gpu12", BlobKind.HOST3D, PAGE_SIZE, OTHERS),
        ([OTHERS, UC], "GPU1", BlobKind.HOST3D, PAGE_SIZE, UC),
    ],
)
def test_the_first_rule_that_matches_wins(
    rules: list[Rule], device: str, blob: BlobKind, size: int, expected: Rule
) -> None:
    assert first_match(rules, device, blob, size) is expected


def test_the_default_is_write_combining_flushed_and_in_the_window() -> None:
    assert Rule(Match(), MemoryType.WC, Fallback.FLUSH, Layout.WINDOW) == DEFAULT_RULE


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], {Layout.WINDOW}),
        ([Rule(layout=Layout.PER_BLOB)], {Layout.PER_BLOB}),
        # A blob with pages of the guest's is never mapped into the BAR.
        ([Rule(Match(blob=BlobKind.HOST3D_GUEST), layout=Layout.PER_BLOB)], {Layout.WINDOW}),
        # No blob is smaller than a page, so that this is every host blob.
        ([Rule(Match(min_size=PAGE_SIZE), layout=Layout.PER_BLOB)], {Layout.PER_BLOB}),
        # No blob has a size between those of one page and of two.
        (
            [Rule(Match(min_size=PAGE_SIZE + 1, max_size=PAGE_SIZE + 9), layout=Layout.PER_BLOB)],
            {Layout.WINDOW},
        ),
        ([Rule(Match(max_size=PAGE_SIZE), layout=Layout.PER_BLOB)], set(Layout)),
        ([Rule(Match(device="gpu1"), layout=Layout.PER_BLOB)], {Layout.WINDOW}),
        ([OTHERS, Rule(Match(device="gpu0"), layout=Layout.PER_BLOB)], {Layout.PER_BLOB}),
    ],
)
def test_layouts_of_a_device(rules: list[Rule], expected: set[Layout]) -> None:
    assert layouts(rules, "gpu0") == expected


_limits = st.builds(
    lambda pages, more: max(0, pages * PAGE_SIZE + more), st.integers(0, 6), st.integers(-1, 1)
)
_rules = st.lists(
    st.builds(
        Rule,
        match=st.builds(
            Match,
            device=st.sampled_from(["*", "gpu0", "gpu1"]),
            blob=st.sampled_from([None, *BlobKind]),
            min_size=_limits,
            max_size=st.none() | _limits,
        ),
        layout=st.sampled_from(Layout),
    ),
    max_size=5,
)


@given(_rules)
def test_layouts_are_those_of_every_size_that_a_host_blob_can_have(rules: list[Rule]) -> None:
    tried = {
        first_match(rules, "gpu0", BlobKind.HOST3D, pages * PAGE_SIZE).layout
        for pages in range(1, 10)
    }
    assert layouts(rules, "gpu0") == tried
