"""What a plan says reaches the guest, the slot and the engine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import PAGE, Machine, Screen, refused
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.slot_policy import Fallback, GuestPat, Layout, MemoryType, Rule
from vgpud.errors import VgpudError
from vgpud.gpu.blobs.window_layout import ZERO_IN_PLACE
from vgpud.gpu.spec import PreferredMode
from vgpud.gpu.wire.protocol import MapInfo, ResponseType
from vgpud.gpu.wire.responses import MappedBlob

FLAG = 8  # KVM_MEM_NON_COHERENT_DMA


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(
    ("guest_pat", "kvm", "told", "flags"),
    [
        (GuestPat.AUTO, KvmMode.FLAG, MapInfo.WC, FLAG),
        (GuestPat.AUTO, KvmMode.SVM, MapInfo.WC, 0),
        (GuestPat.AUTO, KvmMode.EMULATED, MapInfo.WC, 0),
        (GuestPat.AUTO, KvmMode.UNKNOWN, MapInfo.CACHED, 0),
        (GuestPat.AUTO, KvmMode.FORCED_WB, MapInfo.CACHED, 0),
        (GuestPat.HONORED, KvmMode.UNKNOWN, MapInfo.WC, 0),
        (GuestPat.IGNORED, KvmMode.SVM, MapInfo.CACHED, 0),
    ],
)
def test_what_the_vm_is_decides_what_is_told_and_set(
    layout: Layout, guest_pat: GuestPat, kvm: KvmMode, told: MapInfo, flags: int
) -> None:
    with Machine(layout, guest_pat=guest_pat, kvm=kvm) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(told)
        assert machine.bar.flags == flags


def test_a_type_that_can_not_be_had_is_refused_where_the_policy_says_so() -> None:
    rule = Rule(memory_type=MemoryType.WC, fallback=Fallback.REFUSE)
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.UNKNOWN, rule=rule) as machine:
        machine.do(d.ctx_create())
        with refused(ResponseType.ERR_UNSPEC):
            machine.do(d.create_blob(1, PAGE))
        assert len(machine.gpu.resources) == 0


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(("kvm", "resident"), [(KvmMode.SVM, True), (KvmMode.FORCED_WB, False)])
def test_fresh_pages_are_flushed_before_an_uncached_guest_gets_them(
    layout: Layout, kvm: KvmMode, resident: bool
) -> None:
    """The flush brings the pages in, zeroed, which is how it shows; a cached guest needs none."""
    size = 2 * ZERO_IN_PLACE
    with Machine(layout, guest_pat=GuestPat.AUTO, kvm=kvm) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, size))
        machine.do(d.map_blob(1, 0))
        assert machine.bar.allocated() == (size if resident else 0)
        assert machine.bar.read(0, size) == bytes(size)


# -- What is told of plans -------------------------------------------------------------------------


def test_a_fallback_is_told_once_for_a_rule_and_session() -> None:
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.UNKNOWN) as machine:
        machine.do(d.ctx_create())
        for blob in (1, 2, 3):
            machine.do(d.create_blob(blob, PAGE))
        ((kind, resource, data),) = machine.events
        assert (kind, resource) == ("plan.fallback", None)
        assert (data["blob"], data["wanted"], data["told"]) == ("host3d", "wc", "wb")
        assert str(data["reason"]).startswith("nothing shows that KVM honours")
        (problem,) = machine.gpu.plans.problems
        assert problem == f"host3d blobs are wb instead of wc: {data['reason']}"
        machine.gpu.reset()
        assert not machine.gpu.plans.problems
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert len(machine.events) == 1
        assert machine.gpu.plans.problems == (problem,)


def test_a_refusal_is_told_once_for_a_rule_and_session() -> None:
    rule = Rule(memory_type=MemoryType.WC, fallback=Fallback.REFUSE)
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.FORCED_WB, rule=rule) as machine:
        machine.do(d.ctx_create())
        for _ in range(3):
            with refused(ResponseType.ERR_UNSPEC):
                machine.do(d.create_blob(1, PAGE))
        ((kind, _, data),) = machine.events
        assert (kind, data["wanted"], data["told"]) == ("plan.refused", "wc", None)
        assert "the policy is to refuse" in str(data["reason"])
        (problem,) = machine.gpu.plans.problems
        assert problem.startswith("host3d blobs are refused: ")


def test_a_plan_that_is_as_wanted_is_no_event() -> None:
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.SVM) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert machine.events == []
        assert machine.gpu.plans.problems == ()


@pytest.mark.parametrize(
    ("fallback", "line"),
    [
        (Fallback.FLUSH, "plan device=gpu0 blob=host3d map_info=CACHED: nothing shows that"),
        (Fallback.REFUSE, "plan refused device=gpu0 blob=host3d wanted=wc: nothing shows that"),
    ],
)
def test_the_log_has_a_line_for_a_rule_and_reason(
    fallback: Fallback, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rule = Rule(memory_type=MemoryType.WC, fallback=fallback)
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.UNKNOWN, rule=rule) as machine:
        machine.do(d.ctx_create())
        for blob in (1, 2):
            with suppress(VgpudError):
                machine.do(d.create_blob(blob, PAGE))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(line)


# -- Another specification while a guest is at work ------------------------------------------------


def test_rules_and_limit_hold_at_once_for_what_is_made_after() -> None:
    with Machine(Layout.PER_BLOB, guest_pat=GuestPat.AUTO, kvm=KvmMode.FLAG) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        cached = Rule(memory_type=MemoryType.UC, layout=Layout.PER_BLOB)
        machine.gpu.reconfigure(
            replace(machine.spec, rules=(cached,), memory_limit=machine.used + 3 * PAGE)
        )
        machine.do(d.create_blob(2, PAGE))
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(MapInfo.WC)
        assert machine.do(d.map_blob(2, PAGE)) == MappedBlob(MapInfo.UNCACHED)
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            machine.do(d.create_blob(3, PAGE))


def test_a_limit_below_what_is_taken_takes_nothing_away() -> None:
    with Machine(Layout.PER_BLOB) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        machine.gpu.reconfigure(replace(machine.spec, memory_limit=0))
        machine.all(d.map_blob(1, 0), d.unmap_blob(1))
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            machine.do(d.create_blob(2, PAGE))
        machine.do(d.unref(1))


def test_a_windows_flags_stay_for_as_long_as_plans_rely_on_them() -> None:
    wb = Rule(memory_type=MemoryType.WB)
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.FLAG) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))  # planned with the flag, unmapped yet
        machine.gpu.reconfigure(replace(machine.spec, rules=(wb,)))
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(MapInfo.WC)
        assert machine.bar.flags == FLAG
        machine.gpu.reset()
        machine.bar.clear()
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(MapInfo.CACHED)
        assert machine.bar.flags == 0


def test_in_a_flagged_window_the_guests_pat_counts_whatever_is_said_later() -> None:
    """A plan for a cached guest, in a slot where its mapping is uncached, would be wrong."""
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.FLAG) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE), d.map_blob(1, 0))
        machine.gpu.reconfigure(replace(machine.spec, guest_pat=GuestPat.IGNORED))
        machine.do(d.create_blob(2, PAGE))
        assert machine.do(d.map_blob(2, PAGE)) == MappedBlob(MapInfo.WC)
        machine.gpu.reset()
        machine.bar.clear()
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(MapInfo.CACHED)


def test_guest_pat_holds_at_once_where_no_flag_is_set() -> None:
    with Machine(guest_pat=GuestPat.IGNORED, kvm=KvmMode.UNKNOWN) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(MapInfo.CACHED)
        machine.gpu.reconfigure(replace(machine.spec, guest_pat=GuestPat.HONORED))
        machine.do(d.create_blob(2, PAGE))
        assert machine.do(d.map_blob(2, PAGE)) == MappedBlob(MapInfo.WC)


@pytest.mark.parametrize("mapped", [False, True])
def test_an_agent_that_comes_later_is_looked_at(mapped: bool) -> None:
    with Machine(guest_pat=GuestPat.AUTO, kvm=KvmMode.UNKNOWN) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        if mapped:
            machine.do(d.map_blob(1, 0))
        machine.kvm = KvmMode.FLAG
        machine.gpu.find_kvm_mode_again()
        machine.do(d.create_blob(2, PAGE))
        # A live slot keeps the flags that it has; without it, WC can't be promised.
        expected = MappedBlob(MapInfo.CACHED if mapped else MapInfo.WC)
        assert machine.do(d.map_blob(2, PAGE)) == expected
        assert machine.bar.flags == (0 if mapped else FLAG)
        machine.kvm = KvmMode.FORCED_WB  # what was seen stays
        machine.gpu.find_kvm_mode_again()
        machine.do(d.create_blob(3, PAGE))
        assert machine.do(d.map_blob(3, 2 * PAGE)) == expected


def test_the_guest_is_told_no_other_modes_while_a_display_has_its_own() -> None:
    with Machine() as machine:
        screen = Screen()
        machine.gpu.attach_display(screen)
        outputs = (PreferredMode(1280, 720),)
        machine.gpu.reconfigure(replace(machine.spec, outputs=outputs))
        assert machine.events == []
        assert machine.gpu.config_space.read()[:4] == bytes(4)
        machine.gpu.detach_display(screen)
        assert machine.gpu.scanouts.outputs == outputs
