"""No plan lets anybody read what is stale, and no plan asks for more than it must.

Every state is visited that a line of two words can get into, with every way in which the processor
may behave: for such a blob this is a proof, not a sample. (Lines have nothing to do with each other
here, and words only what comes of being in one line. Longer blobs are in test_interleavings.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from tests.coherency.model.cases import DEVICE_CASES, ENGINE_CASES, Case, rows
from tests.coherency.model.memory_types import (
    UC,
    WB,
    WC,
    WP,
    WT,
    Access,
    Hypervisor,
    guest_accesses,
    hypervisors,
)
from tests.coherency.model.scenario import (
    Action,
    Scenario,
    Steps,
    ViolationError,
    World,
    device_steps,
    engine_steps,
    worlds,
)
from vgpud.coherency.facts import Facts
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import plan
from vgpud.coherency.slot_policy import DEFAULT_RULE, MemoryType, Rule
from vgpud.memory.backing import HostBacking


@cache
def violation(world: World, steps: Steps) -> tuple[Action, ...] | None:
    """The shortest way to a stale read, if there is one."""
    seen, _ = explore(world, steps)
    return seen


def explore(world: World, steps: Steps) -> tuple[tuple[Action, ...] | None, Counter[str]]:
    """Visit all states; return the way to the first stale read, and what was done how often."""
    first = Scenario(world, steps, lines=1, one_cache=True)
    seen = {first.key()}
    done: Counter[str] = Counter()
    layer: list[tuple[Scenario, tuple[Action, ...]]] = [(first, ())]
    while layer:
        following = []
        for scenario, way in layer:
            for action in scenario.deeds() + scenario.accidents():
                successor = scenario.clone()
                done[str(action[0])] += 1
                try:
                    successor.apply(action)
                except ViolationError:
                    return (*way, action), done
                key = successor.key()
                if key not in seen:
                    seen.add(key)
                    following.append((successor, (*way, action)))
        layer = following
    return None, done


@pytest.mark.parametrize("case", [*DEVICE_CASES, *ENGINE_CASES], ids=str)
def test_nobody_reads_what_is_stale(case: Case) -> None:
    for world in case.worlds:
        assert violation(world, case.steps) is None, (world, case.rows[0])


@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_no_step_can_be_left_out(case: Case) -> None:
    """Each is needed in some world that is possible as far as we know."""
    missing: dict[str, list[bool]] = {}
    for world in case.worlds:
        for name, less in case.steps.without_one(world):
            missing.setdefault(name, []).append(violation(world, less) is not None)
    for name, noticed in missing.items():
        assert any(noticed), (name, case.rows[0])


def test_every_row_is_a_case() -> None:
    planned = [row for row in rows() if row.plan is not None]
    for cases in (DEVICE_CASES, ENGINE_CASES):
        assert sum(len(case.rows) for case in cases) == len(planned)
        assert all(case.worlds for case in cases)


def test_everything_that_can_happen_does() -> None:
    """The search is as wide as it claims to be."""
    done: Counter[str] = Counter()
    for case in [*DEVICE_CASES, *ENGINE_CASES]:
        for world in case.worlds:
            done += explore(world, case.steps)[1]
    assert set(done) == {
        *("guest load", "guest store", "host load", "host store", "host step"),
        *("device load", "device store", "engine load", "engine store"),
        *("to guest", "to host", "to device", "from device"),
        *("fill", "evict", "drain", "move"),
    }


NAIVE = plan(Facts(KvmMode.QUIRK_DISABLED), DEFAULT_RULE)
"""What other back-ends do: say WC, and trust in it."""


@pytest.mark.parametrize("backing", [HostBacking.RAM_WB, HostBacking.RAM_WC])
def test_the_naive_plan_is_noticed(backing: HostBacking) -> None:
    assert NAIVE.memory_type is MemoryType.WC
    facts = Facts(KvmMode.FORCED_WB, backing)
    for world in worlds(facts, NAIVE):
        assert violation(world, device_steps(NAIVE)) is not None
    assert all(
        violation(world, device_steps(plan(facts, DEFAULT_RULE))) is None
        for world in worlds(facts, plan(facts, DEFAULT_RULE))
    )


@pytest.mark.parametrize("backing", [HostBacking.RAM_WB, HostBacking.RAM_WC])
def test_a_guest_whose_entries_are_looked_up_in_this_host_s_pat(backing: HostBacking) -> None:
    """Told WC, its accesses may be cached; told cached, they may be WC. Only a plan that holds
    either way holds, and it has no step that this guest would not need."""
    facts = Facts(KvmMode.NESTED, backing)
    shared = {Hypervisor.NPT_SHARED_PAT}
    for mode, told, really in (
        (KvmMode.SVM, MemoryType.WC, WB),
        (KvmMode.FORCED_WB, MemoryType.WB, WC),
    ):
        wrong = plan(Facts(mode, backing), DEFAULT_RULE)
        assert wrong.memory_type is told
        possible = [w for w in worlds(facts, wrong, shared) if w.guest == Access(really)]
        assert possible
        for world in possible:
            assert violation(world, device_steps(wrong)) is not None
    right = plan(facts, DEFAULT_RULE)
    possible = sorted(worlds(facts, right, shared))
    assert {world.guest.type for world in possible} == {UC, WC, WT, WP, WB}
    steps = device_steps(right)
    missing: dict[str, bool] = {}
    for world in possible:
        assert violation(world, steps) is None
        for name, less in steps.without_one(world):
            missing[name] = missing.get(name, False) or violation(world, less) is not None
    assert missing
    assert all(missing.values()), missing


def test_the_engine_makes_good_even_the_naive_plan() -> None:
    """Its flushes and non-temporal stores are coherent with caches: it is the device that does DMA
    to which the wrong type is fatal."""
    for world in worlds(Facts(KvmMode.FORCED_WB), NAIVE):
        assert violation(world, engine_steps(NAIVE)) is None


@pytest.mark.parametrize("wanted", [MemoryType.WC, MemoryType.UC])
def test_what_a_processor_that_snoops_itself_spares_the_engine(wanted: MemoryType) -> None:
    """Pages that move and zeros that are still cached are a matter of devices that do DMA, and of
    processors whose uncached accesses do not check the caches."""
    facts = Facts(KvmMode.FLAG)
    found = plan(facts, Rule(memory_type=wanted))
    for make, spared in ((engine_steps, True), (device_steps, False)):
        for world in worlds(facts, found):
            less = dict(make(found).without_one(world))
            for name in ("pinned", "hand_over[0] flush"):
                seen = violation(world, less[name])
                assert (seen is None) == (spared and world.guest.checks), (name, world)


def test_a_line_that_two_parties_write_needs_byte_enables() -> None:
    """Store and flush is not the same as a non-temporal store, even where both end in memory."""
    found = plan(Facts(KvmMode.SVM), DEFAULT_RULE)
    steps = replace(device_steps(found), write=("store", "flush"))
    assert all(violation(world, steps) for world in worlds(Facts(KvmMode.SVM), found))
    apart = replace(steps, write=("flush", "store", "flush"), whole_lines=True)
    assert not any(violation(world, apart) for world in worlds(Facts(KvmMode.SVM), found))


def test_what_the_guest_is_told_is_true() -> None:
    """Told WC or UC, its accesses pass by the caches wherever a processor does them; told UC, they
    are not combined either. Told cached, nothing is promised."""
    told = Counter[MemoryType]()
    for row in rows():
        if row.plan is None or row.facts.kvm is KvmMode.EMULATED:
            continue
        found = {
            access.type
            for hypervisor in hypervisors(row.facts.kvm, row.plan.slot_flags)
            if hypervisor is not Hypervisor.EMULATOR
            for access in guest_accesses(hypervisor, row.facts, row.plan, self_snoop=False)
        }
        told[row.plan.memory_type] += 1
        match row.plan.memory_type:
            case MemoryType.WC:
                assert found <= {WC, UC}, row
            case MemoryType.UC:
                assert found == {UC}, row
            case MemoryType.WB:
                assert WB in found, row
    assert set(told) == {MemoryType.WC, MemoryType.UC, MemoryType.WB}
