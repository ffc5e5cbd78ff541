"""What a plan says reaches the guest, the slot and the engine."""

from __future__ import annotations

import pytest

from tests.device import driver as d
from tests.device.machine import PAGE, Machine, refused
from vgpud.policy.coherency import KvmMode
from vgpud.policy.slot_policy import Fallback, GuestPat, Layout, MemoryType, Rule
from vgpud.wire.gpu.protocol import MapInfo, ResponseType
from vgpud.wire.gpu.responses import MapInfo as Mapped

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
        assert machine.do(d.map_blob(1, 0)) == Mapped(told)
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
    with Machine(layout, guest_pat=GuestPat.AUTO, kvm=kvm) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, 4 * PAGE))
        machine.do(d.map_blob(1, 0))
        assert machine.bar.allocated() == (4 * PAGE if resident else 0)
        assert machine.bar.read(0, 4 * PAGE) == bytes(4 * PAGE)
