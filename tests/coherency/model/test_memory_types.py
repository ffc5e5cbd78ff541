"""The effective memory types, at the places where they have surprised people."""

from __future__ import annotations

from itertools import product

import pytest

from tests.coherency.model.memory_types import (
    EFFECTIVE,
    UC,
    UC_MINUS,
    WB,
    WC,
    WP,
    WT,
    Access,
    Hypervisor,
    Type,
    combine,
    guest_accesses,
    host_accesses,
    hypervisors,
)
from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import plan
from vgpud.coherency.slot_policy import MemoryType, Rule
from vgpud.memory.backing import HostBacking

MTRR_TYPES = (UC, WC, WT, WB, WP)
RAM = (HostBacking.RAM_WB, HostBacking.RAM_WC)


def test_the_table_is_whole() -> None:
    assert set(EFFECTIVE) == set(product(MTRR_TYPES, Type))


@pytest.mark.parametrize("mtrr", MTRR_TYPES)
def test_what_a_page_table_can_always_have(mtrr: Type) -> None:
    """WC from the PAT overrides every MTRR; UC from it makes nothing cached."""
    assert combine(mtrr, WC, self_snoop=False) == Access(WC)
    assert combine(mtrr, UC, self_snoop=False).type is UC
    assert EFFECTIVE[mtrr, UC_MINUS] in ("UC1", "UC2", "WC")


def test_nothing_is_cached_against_an_mtrr() -> None:
    for pat in Type:
        assert combine(UC, pat, self_snoop=True).type in (UC, WC)


def test_whether_caches_are_checked() -> None:
    assert combine(UC, WB, self_snoop=True) == Access(UC, checks=False)  # note 1
    assert combine(WB, UC_MINUS, self_snoop=False) == Access(UC, checks=True)  # note 2
    assert not combine(WB, WC, self_snoop=False).checks
    assert combine(WB, WC, self_snoop=True).checks


def accesses(mode: KvmMode, backing: HostBacking, mtrr: GuestMtrr, told: MemoryType) -> set[Type]:
    """The types of a guest's accesses when it is told this, whatever the planner would say."""
    facts = Facts(mode, backing, mtrr)
    honest = plan(Facts(KvmMode.SVM, backing, GuestMtrr.WB), Rule(memory_type=told))
    return {
        access.type
        for hypervisor in hypervisors(mode, 0)
        for access in guest_accesses(hypervisor, facts, honest, self_snoop=True)
    }


@pytest.mark.parametrize("backing", RAM)
@pytest.mark.parametrize("told", MemoryType)
def test_ram_is_cached_where_kvm_forces_it(backing: HostBacking, told: MemoryType) -> None:
    assert accesses(KvmMode.FORCED_WB, backing, GuestMtrr.UC, told) == {WB}


@pytest.mark.parametrize("mode", [KvmMode.QUIRK_DISABLED, KvmMode.VFIO, KvmMode.SVM])
def test_a_cached_mapping_of_an_uncached_bar_is_not_cached(mode: KvmMode) -> None:
    found = accesses(mode, HostBacking.RAM_WB, GuestMtrr.UC, MemoryType.WB)
    assert UC in found
    assert accesses(mode, HostBacking.RAM_WB, GuestMtrr.WB, MemoryType.WB) == {WB}


@pytest.mark.parametrize("told", MemoryType)
def test_another_pat_may_make_anything_of_what_a_guest_has_chosen(told: MemoryType) -> None:
    found = accesses(KvmMode.NESTED, HostBacking.RAM_WB, GuestMtrr.WB, told)
    assert found == {UC, WC, WT, WP, WB}


def test_an_outer_hypervisor_may_ignore_this_host_s_pat_too() -> None:
    for backing, bare, nested in (
        (HostBacking.RAM_WB, {WB}, {WB}),
        (HostBacking.RAM_WC, {WC}, {WC, WB}),
        (HostBacking.MMIO, {WC, UC}, {WC, UC}),
    ):
        for may_be, expected in ((False, bare), (True, nested)):
            found = host_accesses(backing, self_snoop=False, may_be_nested=may_be)
            assert {access.type for access in found} == expected


@pytest.mark.parametrize("mode", KvmMode)
@pytest.mark.parametrize("told", MemoryType)
def test_no_mode_caches_mmio(mode: KvmMode, told: MemoryType) -> None:
    found = accesses(mode, HostBacking.MMIO, GuestMtrr.WB, told)
    assert found <= {UC, WC}
    if told is MemoryType.WC and mode is KvmMode.SVM:
        assert found == {WC}


def test_an_emulator_does_as_its_own_mapping() -> None:
    for backing in HostBacking:
        found = guest_accesses(
            Hypervisor.EMULATOR,
            Facts(KvmMode.EMULATED, backing),
            plan(Facts(KvmMode.EMULATED), Rule()),
            self_snoop=True,
        )
        assert found == host_accesses(backing, self_snoop=True, may_be_nested=True)
