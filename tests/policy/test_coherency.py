"""The coherency planner: its whole table, and that it never promises what KVM will not keep."""

from __future__ import annotations

from itertools import product

import pytest

from vgpud.errors import GuestError
from vgpud.policy.coherency import Plan, plan
from vgpud.policy.slot_policy import DEFAULT_RULE, Fallback, GuestPat, MemoryType, Rule
from vgpud.wire.gpu.protocol import MapInfo, ResponseType

HONORED, IGNORED, AUTO = GuestPat.HONORED, GuestPat.IGNORED, GuestPat.AUTO
WC, UC, WB = MemoryType.WC, MemoryType.UC, MemoryType.WB
FLUSH, SNOOP, REFUSE = Fallback.FLUSH, Fallback.SNOOP, Fallback.REFUSE

# What the guest is told, and whether the engine goes past the caches; None is a refusal.
TABLE: dict[tuple[GuestPat, MemoryType, Fallback], tuple[MapInfo, bool] | None] = {
    (HONORED, WC, FLUSH): (MapInfo.WC, True),
    (HONORED, WC, SNOOP): (MapInfo.WC, True),
    (HONORED, WC, REFUSE): (MapInfo.WC, True),
    (HONORED, UC, FLUSH): (MapInfo.UNCACHED, True),
    (HONORED, UC, SNOOP): (MapInfo.UNCACHED, True),
    (HONORED, UC, REFUSE): (MapInfo.UNCACHED, True),
    (HONORED, WB, FLUSH): (MapInfo.CACHED, True),
    (HONORED, WB, SNOOP): (MapInfo.CACHED, True),
    (HONORED, WB, REFUSE): (MapInfo.CACHED, True),
    (IGNORED, WC, FLUSH): (MapInfo.CACHED, True),
    (IGNORED, WC, SNOOP): (MapInfo.CACHED, False),
    (IGNORED, WC, REFUSE): None,
    (IGNORED, UC, FLUSH): (MapInfo.CACHED, True),
    (IGNORED, UC, SNOOP): (MapInfo.CACHED, False),
    (IGNORED, UC, REFUSE): None,
    (IGNORED, WB, FLUSH): (MapInfo.CACHED, True),
    (IGNORED, WB, SNOOP): (MapInfo.CACHED, True),
    (IGNORED, WB, REFUSE): (MapInfo.CACHED, True),
    (AUTO, WC, FLUSH): (MapInfo.CACHED, True),
    (AUTO, WC, SNOOP): (MapInfo.CACHED, False),
    (AUTO, WC, REFUSE): None,
    (AUTO, UC, FLUSH): (MapInfo.CACHED, True),
    (AUTO, UC, SNOOP): (MapInfo.CACHED, False),
    (AUTO, UC, REFUSE): None,
    (AUTO, WB, FLUSH): (MapInfo.CACHED, True),
    (AUTO, WB, SNOOP): (MapInfo.CACHED, True),
    (AUTO, WB, REFUSE): (MapInfo.CACHED, True),
}


def rule(memory_type: MemoryType, fallback: Fallback) -> Rule:
    return Rule(memory_type=memory_type, fallback=fallback)


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(product(GuestPat, MemoryType, Fallback))


@pytest.mark.parametrize("facts", TABLE, ids="-".join)
def test_the_table(facts: tuple[GuestPat, MemoryType, Fallback]) -> None:
    guest_pat, memory_type, fallback = facts
    expected = TABLE[facts]
    if expected is None:
        with pytest.raises(GuestError) as caught:
            plan(guest_pat, rule(memory_type, fallback))
        assert caught.value.code == ResponseType.ERR_UNSPEC
        return
    found = plan(guest_pat, rule(memory_type, fallback))
    assert (found.map_info, found.flush_before_read) == expected
    assert found.non_temporal_write == found.flush_before_read
    assert found.reason


def plans(guest_pat: GuestPat) -> list[tuple[MemoryType, Fallback, Plan]]:
    found = []
    for memory_type, fallback in product(MemoryType, Fallback):
        try:
            found.append((memory_type, fallback, plan(guest_pat, rule(memory_type, fallback))))
        except GuestError:
            assert fallback is REFUSE
    return found


@pytest.mark.parametrize("guest_pat", [IGNORED, AUTO])
def test_what_kvm_makes_cached_is_called_cached(guest_pat: GuestPat) -> None:
    assert {found.map_info for _, _, found in plans(guest_pat)} == {MapInfo.CACHED}


@pytest.mark.parametrize("guest_pat", GuestPat)
def test_only_who_asks_to_be_snooped_is(guest_pat: GuestPat) -> None:
    for _, fallback, found in plans(guest_pat):
        assert found.flush_before_read or fallback is SNOOP


@pytest.mark.parametrize("guest_pat", GuestPat)
def test_not_knowing_is_the_same_as_ignored(guest_pat: GuestPat) -> None:
    """But for the words: an operator must see which of the two it was."""
    if guest_pat is AUTO:
        for (_, _, unknown), (_, _, ignored) in zip(plans(AUTO), plans(IGNORED), strict=True):
            assert unknown.map_info == ignored.map_info
            assert unknown.flush_before_read == ignored.flush_before_read
        assert "KVM ignores" in plan(IGNORED, DEFAULT_RULE).reason
        assert "nothing shows that KVM honours" in plan(AUTO, DEFAULT_RULE).reason
    else:
        assert "nothing shows" not in plan(guest_pat, DEFAULT_RULE).reason


@pytest.mark.parametrize("guest_pat", [IGNORED, AUTO])
@pytest.mark.parametrize("memory_type", [WC, UC])
def test_reasons_name_what_could_not_be_had(guest_pat: GuestPat, memory_type: MemoryType) -> None:
    for fallback in (FLUSH, SNOOP):
        assert (
            f"so {memory_type} can't be promised"
            in plan(guest_pat, rule(memory_type, fallback)).reason
        )
    with pytest.raises(GuestError, match=f"so {memory_type} can't be promised, and the policy"):
        plan(guest_pat, rule(memory_type, REFUSE))


def test_the_default_rule_is_write_combining_where_that_is_true() -> None:
    assert plan(HONORED, DEFAULT_RULE).map_info == MapInfo.WC
    assert plan(IGNORED, DEFAULT_RULE).map_info == MapInfo.CACHED
