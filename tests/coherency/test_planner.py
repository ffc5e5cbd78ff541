"""The coherency planner's decisions, in words: memory type, flags, duties and reason. The model in
tests/coherency/model shows that they are right."""

from __future__ import annotations

from itertools import product

import pytest

from vgpud.coherency.facts import Facts, GuestMtrr, facts_of
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.plan import Duty, HostRead, HostWrite, Plan, Sync, VmSetup
from vgpud.coherency.planner import plan, table, window_slot_flags
from vgpud.coherency.slot_policy import DEFAULT_RULE, Fallback, GuestPat, MemoryType, Rule
from vgpud.errors import Unsupported
from vgpud.memory.backing import HostBacking
from vgpud.uapi.memslot import SlotFlag

WC, UC, WB = MemoryType.WC, MemoryType.UC, MemoryType.WB
FLUSH, SNOOP, REFUSE = Fallback.FLUSH, Fallback.SNOOP, Fallback.REFUSE
RAM_WB, RAM_WC, MMIO = HostBacking.RAM_WB, HostBacking.RAM_WC, HostBacking.MMIO
RAM = (RAM_WB, RAM_WC)
HONOURING = (KvmMode.FLAG, KvmMode.QUIRK_DISABLED, KvmMode.VFIO, KvmMode.SVM)
UNDECIDED = (KvmMode.NESTED, KvmMode.UNKNOWN)


def rule(memory_type: MemoryType, fallback: Fallback = FLUSH) -> Rule:
    return Rule(memory_type=memory_type, fallback=fallback)


# What a guest is told of RAM: by mode, its MTRRs over the BAR, and the type that is wanted. A
# bracket is what the type could not be, so that `refuse` refuses.
TOLD = """
                   uc: wc        uc         wb         wb: wc        uc         wb
    flag               WC        UC         WB             WC        UC         WB
    quirk-disabled     WC        UC         (WC)           WC        UC         WB
    vfio               WC        UC         (WC)           WC        UC         WB
    svm                WC        UC         (WC)           WC        UC         WB
    nested             (WB)      (WB)       WB             (WB)      (WB)       WB
    forced-wb          (WB)      (WB)       WB             (WB)      (WB)       WB
    emulated           WC        UC         WB             WC        UC         WB
    unknown            (WB)      (WB)       WB             (WB)      (WB)       WB
"""


def told() -> dict[tuple[KvmMode, GuestMtrr, MemoryType], tuple[MemoryType, bool]]:
    """The table above; True is a type that can be had."""
    found = {}
    columns = [*product((GuestMtrr.UC,), (WC, UC, WB)), *product((GuestMtrr.WB,), (WC, UC, WB))]
    for line in TOLD.strip().split("\n")[1:]:
        mode, *cells = line.split()
        for (mtrr, memory_type), cell in zip(columns, cells, strict=True):
            name = cell.strip("()")
            found[KvmMode(mode), mtrr, memory_type] = MemoryType[name], cell == name
    return found


def test_the_table_of_what_is_told_is_whole() -> None:
    assert set(told()) == set(product(KvmMode, GuestMtrr, MemoryType))


@pytest.mark.parametrize("backing", RAM)
@pytest.mark.parametrize("snoops", [False, True])
@pytest.mark.parametrize("key", told(), ids="-".join)
def test_what_is_told_of_ram(
    backing: HostBacking, snoops: bool, key: tuple[KvmMode, GuestMtrr, MemoryType]
) -> None:
    mode, mtrr, memory_type = key
    expected, had = told()[key]
    facts = Facts(mode, backing, mtrr, device_snoops=snoops)
    for fallback in (FLUSH, SNOOP):
        found = plan(facts, rule(memory_type, fallback))
        assert found.memory_type is expected
    if had:
        assert plan(facts, rule(memory_type, REFUSE)).memory_type is expected
        return
    with pytest.raises(Unsupported, match="and the policy is to refuse"):
        plan(facts, rule(memory_type, REFUSE))


@pytest.mark.parametrize("mode", KvmMode)
@pytest.mark.parametrize("mtrr", GuestMtrr)
@pytest.mark.parametrize("snoops", [False, True])
def test_device_memory_is_the_same_everywhere(mode: KvmMode, mtrr: GuestMtrr, snoops: bool) -> None:
    facts = Facts(mode, MMIO, mtrr, device_snoops=snoops)
    found = plan(facts, rule(WC))
    assert found.memory_type is WC
    assert plan(facts, rule(WB)).memory_type is WC
    with pytest.raises(Unsupported, match="wb can't be had"):
        plan(facts, rule(WB, REFUSE))
    assert (found.slot_flags, found.vm_setup, found.device_snoops) == (0, (), False)
    assert steps(found) == (N, "plain", "non-temporal", N, N, False)


@pytest.mark.parametrize("mode", KvmMode)
def test_device_memory_is_uc_where_a_guest_s_entry_for_that_can_not_mean_wc(mode: KvmMode) -> None:
    facts = Facts(mode, MMIO)
    assert plan(facts, rule(UC)).memory_type is (WC if mode in UNDECIDED else UC)
    assert steps(plan(facts, rule(UC))) == steps(plan(facts, rule(WC)))
    if mode not in UNDECIDED:
        assert plan(facts, rule(UC, REFUSE)).memory_type is UC
        return
    with pytest.raises(Unsupported, match="uc can't be promised, and the policy is to refuse"):
        plan(facts, rule(UC, REFUSE))


F, N = Duty.FLUSH, Duty.NOTHING

Steps = tuple[Duty, str, str, Duty, Duty, bool]


def steps(found: Plan) -> Steps:
    return (
        found.before_hand_over,
        found.host_read.value,
        found.host_write.value,
        found.sync.to_device,
        found.sync.from_device,
        found.pinned,
    )


# Before hand-over, host's read, host's write, to the device, from it, pinned; by what the guest's
# accesses are, our own mapping, and whether the device snoops.
STEPS: dict[tuple[str, HostBacking, bool], Steps] = {
    ("uncached", RAM_WB, False): (F, "flushed", "non-temporal", N, N, True),
    ("uncached", RAM_WB, True): (F, "flushed", "non-temporal", F, F, True),
    ("uncached", RAM_WC, False): (F, "plain", "non-temporal", N, N, False),
    ("uncached", RAM_WC, True): (F, "plain", "non-temporal", F, F, False),
    ("cached", RAM_WB, False): (N, "plain", "plain", F, F, False),
    ("cached", RAM_WB, True): (N, "plain", "plain", N, N, False),
    ("cached", RAM_WC, False): (N, "flushed", "flushed", F, F, False),
    ("cached", RAM_WC, True): (N, "flushed", "flushed", N, N, False),
    ("either", RAM_WB, False): (F, "flushed", "non-temporal", F, F, True),
    ("either", RAM_WB, True): (F, "flushed", "non-temporal", F, F, True),
    ("either", RAM_WC, False): (F, "flushed", "flushed", F, F, False),
    ("either", RAM_WC, True): (F, "flushed", "flushed", F, F, False),
}

# What makes the guest's accesses one of these: mode, MTRRs, wanted type, our mapping.
GUESTS = [
    *(("uncached", mode, mtrr, wanted, backing)
      for mode, mtrr, wanted, backing in product(HONOURING, GuestMtrr, (WC, UC), RAM)),
    *(("uncached", mode, GuestMtrr.UC, WB, backing)
      for mode, backing in product(HONOURING[1:], RAM)),
    *(("cached", mode, GuestMtrr.WB, WB, backing) for mode, backing in product(HONOURING, RAM)),
    *(("cached", KvmMode.FORCED_WB, mtrr, wanted, backing)
      for mtrr, wanted, backing in product(GuestMtrr, MemoryType, RAM)),
    *(("cached", KvmMode.EMULATED, mtrr, wanted, RAM_WB)
      for mtrr, wanted in product(GuestMtrr, MemoryType)),
    *(("either", KvmMode.FLAG, GuestMtrr.UC, WB, backing) for backing in RAM),
    *(("either", KvmMode.EMULATED, mtrr, wanted, RAM_WC)
      for mtrr, wanted in product(GuestMtrr, MemoryType)),
    *(("either", mode, mtrr, wanted, backing)
      for mode, mtrr, wanted, backing in product(UNDECIDED, GuestMtrr, MemoryType, RAM)),
]  # fmt: skip


def test_the_list_of_guests_is_whole() -> None:
    assert len(GUESTS) == len({guest[1:] for guest in GUESTS})
    assert len(GUESTS) == len(KvmMode) * len(GuestMtrr) * len(MemoryType) * len(RAM)


@pytest.mark.parametrize("snoops", [False, True])
@pytest.mark.parametrize("guest", GUESTS, ids="-".join)
def test_steps_for_ram(
    guest: tuple[str, KvmMode, GuestMtrr, MemoryType, HostBacking], snoops: bool
) -> None:
    accesses, mode, mtrr, wanted, backing = guest
    found = plan(Facts(mode, backing, mtrr, device_snoops=snoops), rule(wanted))
    assert steps(found) == STEPS[accesses, backing, snoops]
    assert found.device_snoops is snoops


@pytest.mark.parametrize("mode", [KvmMode.FORCED_WB, *UNDECIDED])
@pytest.mark.parametrize("backing", RAM)
@pytest.mark.parametrize("wanted", [WC, UC])
def test_falling_back_on_snooping(mode: KvmMode, backing: HostBacking, wanted: MemoryType) -> None:
    """A device that does not snoop is made to, and then it is as with one that does."""
    found = plan(Facts(mode, backing), rule(wanted, SNOOP))
    assert found.device_snoops
    assert steps(found) == steps(plan(Facts(mode, backing, device_snoops=True), rule(wanted)))
    assert not plan(Facts(mode, backing), rule(WB, SNOOP)).device_snoops


@pytest.mark.parametrize("mode", HONOURING)
def test_a_type_that_can_be_had_needs_no_fallback(mode: KvmMode) -> None:
    assert plan(Facts(mode), rule(WC, SNOOP)) == plan(Facts(mode), rule(WC, FLUSH))


def test_slot_flags() -> None:
    for mode, backing, mtrr, wanted in product(KvmMode, HostBacking, GuestMtrr, MemoryType):
        flagged = mode is KvmMode.FLAG and backing is not MMIO and wanted is not WB
        found = plan(Facts(mode, backing, mtrr), rule(wanted))
        assert found.slot_flags == (SlotFlag.NON_COHERENT_DMA if flagged else 0)


def test_the_flags_of_one_slot_for_many_rules() -> None:
    facts = Facts(KvmMode.FLAG)
    assert window_slot_flags(facts, [rule(WB), rule(WC)]) == SlotFlag.NON_COHERENT_DMA
    assert window_slot_flags(facts, [rule(UC)]) == SlotFlag.NON_COHERENT_DMA
    assert window_slot_flags(facts, [rule(WB)]) == 0
    assert window_slot_flags(facts, []) == 0
    assert window_slot_flags(Facts(KvmMode.FLAG, MMIO), [rule(WC)]) == 0
    assert window_slot_flags(Facts(KvmMode.SVM), [rule(WC)]) == 0


def test_a_blob_in_a_slot_that_is_there_already() -> None:
    facts = Facts(KvmMode.FLAG)
    cached_in_flagged = plan(facts, rule(WB), slot_flags=SlotFlag.NON_COHERENT_DMA)
    assert cached_in_flagged.memory_type is WC
    assert cached_in_flagged.slot_flags == SlotFlag.NON_COHERENT_DMA
    with pytest.raises(Unsupported, match="UC-"):
        plan(facts, rule(WB, REFUSE), slot_flags=SlotFlag.NON_COHERENT_DMA)
    with_mtrr = Facts(KvmMode.FLAG, mtrr=GuestMtrr.WB)
    assert plan(with_mtrr, rule(WB), slot_flags=SlotFlag.NON_COHERENT_DMA).memory_type is WB
    combined_in_plain = plan(facts, rule(WC), slot_flags=SlotFlag.NONE)
    assert combined_in_plain.memory_type is WB
    assert combined_in_plain.slot_flags == 0
    assert "KVM_MEM_NON_COHERENT_DMA" in combined_in_plain.reason
    with pytest.raises(Unsupported):
        plan(facts, rule(WC, REFUSE), slot_flags=SlotFlag.NONE)


def test_what_a_vm_must_be() -> None:
    needed = {
        KvmMode.QUIRK_DISABLED: (VmSetup.DISABLE_IGNORE_GUEST_PAT,),
        KvmMode.VFIO: (VmSetup.NON_COHERENT_VFIO,),
    }
    for mode, backing in product(KvmMode, RAM):
        assert plan(Facts(mode, backing), rule(WC)).vm_setup == needed.get(mode, ())
        assert plan(Facts(mode, backing), rule(WB)).vm_setup == needed.get(mode, ())
        cached = Facts(mode, backing, GuestMtrr.WB)
        assert plan(cached, rule(WB)).vm_setup == ()  # write-back it is with or without


@pytest.mark.parametrize(
    ("guest_pat", "seen", "mode"),
    [
        (GuestPat.AUTO, KvmMode.UNKNOWN, KvmMode.UNKNOWN),
        *((GuestPat.AUTO, mode, mode) for mode in KvmMode),
        *((GuestPat.IGNORED, mode, KvmMode.FORCED_WB) for mode in KvmMode),
        *((GuestPat.HONORED, mode, mode) for mode in HONOURING),
        (GuestPat.HONORED, KvmMode.FORCED_WB, KvmMode.QUIRK_DISABLED),
        (GuestPat.HONORED, KvmMode.EMULATED, KvmMode.QUIRK_DISABLED),
        (GuestPat.HONORED, KvmMode.UNKNOWN, KvmMode.QUIRK_DISABLED),
        (GuestPat.HONORED, KvmMode.NESTED, KvmMode.QUIRK_DISABLED),
    ],
)
def test_what_the_configuration_says(guest_pat: GuestPat, seen: KvmMode, mode: KvmMode) -> None:
    assert facts_of(guest_pat, seen=seen) == Facts(mode)
    more = facts_of(guest_pat, seen=seen, backing=RAM_WC, mtrr=GuestMtrr.WB, device_snoops=True)
    assert more == Facts(mode, RAM_WC, GuestMtrr.WB, device_snoops=True)


def test_not_knowing_is_told_as_ignored() -> None:
    for mode, backing, mtrr, wanted in product(UNDECIDED, RAM, GuestMtrr, MemoryType):
        unknown = plan(Facts(mode, backing, mtrr), rule(wanted))
        ignored = plan(Facts(KvmMode.FORCED_WB, backing, mtrr), rule(wanted))
        assert unknown.memory_type is ignored.memory_type
        assert unknown.sync == ignored.sync == Sync(F, F)


@pytest.mark.parametrize(
    ("facts", "wanted", "flush", "non_temporal", "around"),
    [
        (Facts(KvmMode.SVM), WC, True, True, False),
        (Facts(KvmMode.FORCED_WB), WC, True, True, False),
        (Facts(KvmMode.FORCED_WB, device_snoops=True), WC, False, False, False),
        (Facts(KvmMode.FORCED_WB, RAM_WC), WC, True, True, True),
        (Facts(KvmMode.SVM, RAM_WC), WC, False, True, False),
        (Facts(KvmMode.SVM, RAM_WC, device_snoops=True), WC, True, True, False),
        (Facts(KvmMode.UNKNOWN), WC, True, True, False),
        (Facts(KvmMode.UNKNOWN, device_snoops=True), WC, True, True, False),
        (Facts(KvmMode.SVM, MMIO), WC, False, True, False),
    ],
)
def test_what_the_engine_does(
    facts: Facts, wanted: MemoryType, flush: bool, non_temporal: bool, around: bool
) -> None:
    found = plan(facts, rule(wanted))
    assert found.flush_before_read is flush
    assert found.non_temporal_write is non_temporal
    assert found.flush_around_write is around


def test_the_whole_table() -> None:
    rows = list(table())
    keys = {(row.facts, row.rule) for row in rows}
    assert len(keys) == len(rows) == 8 * 3 * 2 * 2 * 3 * 3
    for row in rows:
        if row.plan is None:
            assert row.rule.fallback is REFUSE
            assert row.reason.endswith("and the policy is to refuse")
        else:
            assert row.plan == plan(row.facts, row.rule)
            assert row.reason == row.plan.reason


def test_reasons_are_one_sentence_and_tell_what_is_told() -> None:
    for row in table():
        assert "\n" not in row.reason
        assert "." not in row.reason
        if row.plan is not None:
            found = row.plan
            assert ("flushed at sync points" in row.reason) == (found.sync.to_device is F)
            assert ("the device snoops" in row.reason) == found.device_snoops


@pytest.mark.parametrize(
    ("facts", "wanted", "words"),
    [
        (Facts(KvmMode.FLAG), WC, "KVM_MEM_NON_COHERENT_DMA"),
        (Facts(KvmMode.QUIRK_DISABLED), WC, "as the VM was set up so"),
        (Facts(KvmMode.VFIO), UC, "an assigned device"),
        (Facts(KvmMode.SVM), WC, "AMD's KVM honours"),
        (Facts(KvmMode.FORCED_WB), WC, "KVM ignores the guest's memory type, so wc can't"),
        (Facts(KvmMode.UNKNOWN), UC, "nothing shows that KVM honours"),
        (Facts(KvmMode.NESTED), WC, "the outer hypervisor decides"),
        (Facts(KvmMode.NESTED, MMIO), UC, "the outer hypervisor decides"),
        (Facts(KvmMode.UNKNOWN, MMIO), UC, "nothing shows that KVM honours"),
        (Facts(KvmMode.EMULATED), WC, "the emulator"),
        (Facts(KvmMode.SVM), WB, "would be UC-"),
        (Facts(KvmMode.SVM, MMIO), WC, "the device's own"),
    ],
)
def test_reasons(facts: Facts, wanted: MemoryType, words: str) -> None:
    assert words in plan(facts, rule(wanted)).reason


def test_the_default_rule_is_write_combining_where_that_is_true() -> None:
    assert plan(Facts(KvmMode.SVM), DEFAULT_RULE).memory_type is WC
    assert plan(Facts(KvmMode.FORCED_WB), DEFAULT_RULE).memory_type is WB
    assert plan(Facts(KvmMode.SVM), DEFAULT_RULE).host_read is HostRead.FLUSHED
    assert plan(Facts(KvmMode.SVM), DEFAULT_RULE).host_write is HostWrite.NON_TEMPORAL
