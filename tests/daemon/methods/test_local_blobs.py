"""Blobs of a VMM that has vgpud as a library: real slots on /dev/kvm, in the BAR and outside."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.methods.stand import Methods, kind_of, refused_as_guest
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from tests.support.kvm_host import Poker
from vgpud.control.rpc import RpcError
from vgpud.daemon.config import Config
from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.slots.local import LocalSlots
from vgpud.slots.memslots import Memslots
from vgpud.slots.table import SlotTable

PAGE = 4096
BAR = Gpa(0x100_0000)
RAM = 0x8_0000
"""Where the guest, which is in real mode, can get at."""


@pytest.fixture(params=[True, False])
def allowed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def methods(poker: Poker, short_directory: Path, allowed: bool) -> Iterator[Methods]:
    config = (
        f'[daemon]\nruntime_dir = "{short_directory}"\n'
        '[[device]]\nname = "gpu0"\nwindow = "1MiB"\nmemory_limit = "16MiB"\nslots = "local"\n'
        '[[slot_policy]]\nlayout = "per-blob"\n'
        f"allow_guest_ram = {str(allowed).lower()}\n"
    )
    table = SlotTable(range(1, 9), base=BAR, allow_guest_ram=True)
    with Memslots(poker.vm) as memslots:
        slots = LocalSlots(memslots, table)
        with (
            DaemonThread(Config.from_toml(config), {"gpu0": slots}) as daemon,
            FrontEnd.connect(short_directory / "gpu0.sock").handshake(),
        ):
            yield Methods(daemon)


def make(methods: Methods) -> int:
    return int(methods.call("blob.create", device="gpu0", size=2 * PAGE).blob)


def test_a_blob_in_guest_ram_is_what_the_guest_sees_there(
    methods: Methods, poker: Poker, allowed: bool
) -> None:
    blob = make(methods)
    where = {"device": "gpu0", "blob": blob}
    if not allowed:
        with pytest.raises(RpcError, match="needs allow_guest_ram = true") as refused:
            methods.call("blob.map", **where, guest_phys_addr=RAM)
        assert kind_of(refused.value) == "not-possible"
        return
    mapped = methods.call("blob.map", **where, guest_phys_addr=RAM)
    assert (mapped.mapped, mapped.offset, mapped.guest_phys_addr) == (True, None, RAM)
    (slot,) = methods.call("slot.list").items
    assert (slot.owner, slot.use, slot.guest_phys_addr, slot.memory_size) == (
        *("local", "ram", RAM),
        2 * PAGE,
    )
    reply = methods.call("blob.export", **where)
    with reply.fd as fd, mmap.mmap(fd.fileno(), 2 * PAGE, offset=reply.value.fd_offset) as view:
        view[PAGE + 1] = 0x77
        assert poker.poke(RAM + PAGE, 0x42) == 0x77
        assert view[PAGE] == 0x42
    with refused_as_guest(0x1205, "is mapped"):
        methods.call("blob.map", **where)
    assert not methods.call("blob.unmap", **where).mapped
    assert methods.call("slot.list").items == ()
    in_bar = methods.call("blob.map", **where)
    assert (in_bar.offset, in_bar.guest_phys_addr) == (0xF_E000, BAR + 0xF_E000)
    methods.call("blob.destroy", **where)
    assert methods.call("slot.list").items == ()


def test_addresses_of_the_window_and_of_others_are_refused(methods: Methods, allowed: bool) -> None:
    if not allowed:
        return
    where = {"device": "gpu0", "blob": make(methods)}
    for address in (BAR, BAR - PAGE, BAR + 0xF_F000):
        with pytest.raises(RpcError, match="in the BAR window"):
            methods.call("blob.map", **where, guest_phys_addr=address)
    with pytest.raises(HostError):  # the guest's own RAM is there
        methods.call("blob.map", **where, guest_phys_addr=0)
    with pytest.raises(HostError, match="multiples of 4096"):
        methods.call("blob.map", **where, guest_phys_addr=RAM + 1)
    assert methods.call("slot.list").items == ()
    methods.call("blob.map", **where, guest_phys_addr=BAR + 0x10_0000)


def test_a_reset_takes_slots_outside_of_the_bar_too(
    methods: Methods, poker: Poker, allowed: bool, short_directory: Path
) -> None:
    if not allowed:
        return
    methods.call("blob.map", device="gpu0", blob=make(methods), guest_phys_addr=RAM)
    poker.poke(RAM, 1)
    methods.run(methods.live("gpu0").reset())
    assert methods.call("slot.list").items == ()
    with pytest.raises(AssertionError):
        poker.poke(RAM, 1)
