"""blob.*: blobs of the VMM's own, and those of a guest's driver."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.daemon.methods.stand import Methods, kind_of, refused_as_guest, wait_gone
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from tests.vhost.test_session import MAPPED, OK, make_blob, run
from vgpud.control.call import Reply
from vgpud.control.models import Blob, BlobExport
from vgpud.control.rpc import ErrorCode, RpcError
from vgpud.daemon.config import Config
from vgpud.errors import HostError
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.protocol import ResponseType
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.protocol import ProtocolFeature

WINDOW = 16 << 20
SIZE = 64 << 10


@pytest.fixture(params=["window", "per-blob"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(
    short_directory: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> Iterator[DaemonThread]:
    config = (
        f'[daemon]\nruntime_dir = "{short_directory}"\n'
        '[[device]]\nname = "gpu0"\nwindow = "16MiB"\nmemory_limit = "32MiB"\n'
        'guest_pat = "honored"\n'
        f'[[slot_policy]]\nmemory_type = "wc"\nlayout = "{layout}"\n'
    )
    with DaemonThread(Config.from_toml(config)) as daemon:
        yield daemon
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def create(methods: Methods, size: int = SIZE) -> Blob:
    blob = methods.call("blob.create", device="gpu0", size=size)
    assert isinstance(blob, Blob)
    return blob


def place(methods: Methods, blob: int, **where: int) -> Blob:
    blob_ = methods.call("blob.map", device="gpu0", blob=blob, **where)
    assert isinstance(blob_, Blob)
    return blob_


def memory(reply: Reply) -> mmap.mmap:
    """What `blob.export` answers, mapped."""
    value = reply.value
    assert isinstance(value, BlobExport)
    with reply.fd as fd:
        return mmap.mmap(fd.fileno(), value.size, offset=value.fd_offset)


def used(methods: Methods) -> int:
    return int(methods.call("device.get", device="gpu0").memory_used)


def test_a_blob_of_the_vmms_is_what_the_guest_sees_in_its_bar(
    methods: Methods, fe: FrontEnd, layout: str
) -> None:
    before = used(methods)
    blob = create(methods)
    assert blob.blob >= FIRST_ID
    assert (blob.origin, blob.kind, blob.size, blob.mapped) == ("vmm", "host3d", SIZE, False)
    assert (blob.map_info, blob.flags) == ("wc", 0)
    mapped = place(methods, blob.blob)
    assert (mapped.mapped, mapped.offset) == (True, WINDOW - SIZE)
    with memory(methods.call("blob.export", device="gpu0", blob=blob.blob)) as view:
        assert view[:] == bytes(SIZE)
        view[:5] = b"hello"
        assert fe.bar is not None
        assert fe.bar.read(WINDOW - SIZE, 5) == b"hello"
    assert methods.call("blob.list").items == (mapped,)
    assert not methods.call("blob.unmap", device="gpu0", blob=blob.blob).mapped
    methods.call("blob.destroy", device="gpu0", blob=blob.blob)
    assert methods.call("blob.list").items == ()
    assert used(methods) == before
    happened = ["blob.created", "blob.mapped", "blob.unmapped", "blob.destroyed"]
    assert [kind for kind in methods.kinds() if kind.startswith("blob.")] == happened
    assert {event.resource for event in methods.events if event.resource} == {blob.blob}
    if layout == "per-blob":
        assert fe.bar.mappings == {}


def test_what_is_unmapped_is_taken_from_the_guest(
    methods: Methods, fe: FrontEnd, layout: str
) -> None:
    blob = create(methods).blob
    place(methods, blob, offset=SIZE)
    assert fe.bar is not None
    fe.bar.write(SIZE, b"secret")
    # The guest can't prevent it by using up all memory.
    make_blob(fe, 1, (32 << 20) - used(methods) - 4 * 4096)
    methods.call("blob.unmap", device="gpu0", blob=blob)
    if layout == "window":
        assert fe.bar.read(SIZE, SIZE) == bytes(SIZE)
    else:
        assert fe.bar.mappings == {}
    assert run(fe, c.ResourceUnref, 1) == OK
    place(methods, blob, offset=2 * SIZE)
    assert fe.bar.read(2 * SIZE, 6) == b"secret"


@pytest.mark.parametrize("end", ["blob.unmap", "blob.destroy"])
def test_an_export_shows_no_other_blob(
    methods: Methods, fe: FrontEnd, layout: str, end: str
) -> None:
    blob = create(methods).blob
    place(methods, blob)
    view = memory(methods.call("blob.export", device="gpu0", blob=blob))
    offset = WINDOW - SIZE
    with view:
        view[:5] = b"first"
        methods.call(end, device="gpu0", blob=blob)
        other = create(methods).blob
        make_blob(fe, 1)
        if layout == "window":
            with refused_as_guest(0x1205, "which was exported"):
                place(methods, other, offset=offset)
            assert run(fe, c.ResourceMapBlob, 1, offset) == ResponseType.ERR_INVALID_PARAMETER
        mapped = place(methods, other)
        assert (mapped.offset == offset) is (layout == "per-blob")
        assert fe.bar is not None
        assert mapped.offset is not None
        fe.bar.write(mapped.offset, b"other")
        assert view[:5] == (bytes(5) if layout == "window" else b"first")
        fe.bar.close()  # as a VMM does at a reset
        fe.reset()
        mapped = place(methods, create(methods).blob)
        assert mapped.offset == offset
        fe.bar.write(offset, b"third")
        assert view[:5] == (bytes(5) if layout == "window" else b"first")


def test_an_export_of_the_guests_shows_no_other_blob(
    methods: Methods, fe: FrontEnd, layout: str
) -> None:
    for blob in (1, 2):
        make_blob(fe, blob)
    assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED
    with memory(methods.call("blob.export", device="gpu0", blob=1)) as view:
        assert fe.bar is not None
        fe.bar.write(0, b"first")
        assert run(fe, c.ResourceUnmapBlob, 1) == OK
        assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED  # it may come back
        assert run(fe, c.ResourceUnmapBlob, 1) == OK
        free = MAPPED if layout == "per-blob" else ResponseType.ERR_INVALID_PARAMETER
        assert run(fe, c.ResourceMapBlob, 2, 0) == free
        assert run(fe, c.ResourceUnref, 1) == OK
        if layout == "window":
            assert run(fe, c.ResourceMapBlob, 2, 0) == ResponseType.ERR_INVALID_PARAMETER
            assert run(fe, c.ResourceMapBlob, 2, SIZE) == MAPPED
            fe.bar.write(SIZE, b"other")
            assert view[:5] == bytes(5)


def test_places_are_taken_from_the_end_down_and_free_ones_again(
    methods: Methods, fe: FrontEnd
) -> None:
    blobs = [create(methods).blob for _ in range(3)]
    offsets = [place(methods, blob).offset for blob in blobs]
    assert offsets == [WINDOW - SIZE * n for n in (1, 2, 3)]
    methods.call("blob.destroy", device="gpu0", blob=blobs[1])
    assert place(methods, create(methods, 2 * SIZE).blob).offset == WINDOW - 5 * SIZE
    assert place(methods, create(methods).blob).offset == WINDOW - 2 * SIZE


def test_what_is_mapped_is_in_nobodys_way_but_its_own_place(methods: Methods, fe: FrontEnd) -> None:
    make_blob(fe, 1)
    assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED
    blob = create(methods).blob
    with refused_as_guest(0x1205, "overlaps blob 1"):
        place(methods, blob, offset=0)
    assert place(methods, blob, offset=4 * SIZE).offset == 4 * SIZE
    make_blob(fe, 2)
    assert run(fe, c.ResourceMapBlob, 2, 4 * SIZE) == ResponseType.ERR_INVALID_PARAMETER
    assert run(fe, c.ResourceMapBlob, 2, SIZE) == MAPPED
    with refused_as_guest(0x1205, "mapped already"):
        place(methods, blob)


def test_a_parked_blob_of_the_guest_makes_room_and_keeps_its_bytes(
    methods: Methods, fe: FrontEnd, layout: str
) -> None:
    if layout == "per-blob":  # nobody is parked there
        return
    make_blob(fe, 1)
    assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED
    assert fe.bar is not None
    fe.bar.write(0, b"mine")
    assert run(fe, c.ResourceUnmapBlob, 1) == OK
    whole = create(methods, 8 << 20).blob
    assert place(methods, whole).offset == 8 << 20
    other = create(methods, 8 << 20).blob
    assert place(methods, other).offset == 0
    methods.call("blob.destroy", device="gpu0", blob=other)
    assert run(fe, c.ResourceMapBlob, 1, SIZE) == MAPPED
    assert fe.bar.read(SIZE, 4) == b"mine"


def test_the_guests_blobs_are_looked_at_only(methods: Methods, fe: FrontEnd) -> None:
    make_blob(fe, 7)
    assert run(fe, c.ResourceMapBlob, 7, SIZE) == MAPPED
    assert fe.bar is not None
    fe.bar.write(SIZE, b"guest")
    (blob,) = methods.call("blob.list", device="gpu0").items
    assert (blob.blob, blob.origin, blob.offset, blob.mapped) == (7, "guest", SIZE, True)
    with memory(methods.call("blob.export", device="gpu0", blob=7)) as view:
        assert view[:5] == b"guest"
    for method in ("blob.map", "blob.unmap", "blob.destroy"):
        with pytest.raises(RpcError, match="is the guest's") as refused:
            methods.call(method, device="gpu0", blob=7)
        assert kind_of(refused.value) == "not-possible"


def test_a_blob_of_the_window_is_in_no_file_before_it_was_mapped(
    methods: Methods, fe: FrontEnd, layout: str
) -> None:
    blob = create(methods).blob
    if layout == "per-blob":
        memory(methods.call("blob.export", device="gpu0", blob=blob)).close()
        return
    with pytest.raises(RpcError, match="map it first") as refused:
        methods.call("blob.export", device="gpu0", blob=blob)
    assert kind_of(refused.value) == "not-possible"


@pytest.mark.parametrize("method", ["blob.map", "blob.unmap", "blob.destroy", "blob.export"])
def test_a_blob_that_is_not_there(methods: Methods, fe: FrontEnd, method: str) -> None:
    stale = create(methods).blob
    methods.call("blob.destroy", device="gpu0", blob=stale)
    run(fe, c.ResourceCreate2D, 9, 2, 64, 64)
    for blob in (stale, stale + 1, 1, 9):
        with pytest.raises(RpcError, match=f"no blob {blob}") as refused:
            methods.call(method, device="gpu0", blob=blob)
        assert kind_of(refused.value) == "no-blob"
    assert create(methods).blob > stale


def test_a_reset_takes_the_vmms_blobs_too(methods: Methods, fe: FrontEnd) -> None:
    before = used(methods)
    blob = create(methods).blob
    place(methods, blob)
    fe.reset()
    assert fe.bar is not None
    fe.bar.close()  # as the VMM has done itself
    assert methods.kinds()[-2:] == ["blob.destroyed", "device.reset"]
    assert used(methods) == before
    with pytest.raises(RpcError, match="no blob"):
        place(methods, blob)
    again = create(methods).blob
    assert again > blob
    assert place(methods, again).offset == WINDOW - SIZE


def test_a_reset_ends_what_a_stuck_front_end_keeps_waiting(methods: Methods, fe: FrontEnd) -> None:
    """The caller gets an error, the blob is gone, and the device continues."""
    blob = create(methods).blob
    fe.backend.answering.clear()
    with ThreadPoolExecutor(1) as client:
        asking = client.submit(place, methods, blob)
        while not fe.backend.messages:
            time.sleep(0.01)
        fe.mem_table_on_map = False
        fe.tell(m.ResetDevice())
        with refused_as_guest(0x1200, "reset meanwhile"):
            asking.result(5)
    fe.backend.answering.set()
    assert methods.call("blob.list").items == ()
    assert methods.call("slot.list").items == ()
    assert fe.bar is not None
    bar = fe.bar
    for driver in fe.drivers:
        driver.reset()
    fe.start()
    place(methods, create(methods).blob)  # what was given up has been undone by now
    assert len(bar.mappings) == 1


def test_a_front_end_that_goes_ends_what_is_being_done(
    methods: Methods, fe: FrontEnd, daemon: DaemonThread
) -> None:
    blob = create(methods).blob
    fe.backend.answering.clear()
    with ThreadPoolExecutor(1) as client:
        asking = client.submit(place, methods, blob)
        while not fe.backend.messages:
            time.sleep(0.01)
        fe.mem_table_on_map = False  # its answer would be sent on a closed socket
        fe.sock.close()
        with pytest.raises((RpcError, HostError)):
            asking.result(5)
    fe.backend.answering.set()
    with pytest.raises(RpcError):
        create(methods)
    wait_gone(daemon.daemon.devices["gpu0"])


def test_without_a_front_end_there_are_no_blobs(methods: Methods) -> None:
    with pytest.raises(RpcError) as refused:
        create(methods)
    assert kind_of(refused.value) == "no-front-end"
    with pytest.raises(RpcError, match="the devices are gpu0") as refused:
        methods.call("blob.create", device="gpu9", size=SIZE)
    assert kind_of(refused.value) == "no-device"
    assert methods.call("blob.list").total == 0


def test_what_is_too_much_costs_nothing(methods: Methods, fe: FrontEnd, layout: str) -> None:
    before = used(methods)
    with refused_as_guest(0x1201, "left of"):
        create(methods, 64 << 20)
    with refused_as_guest(0x1205, "whole pages"):
        create(methods, 4097)
    assert used(methods) == before
    large = create(methods, 9 << 20).blob
    assert place(methods, large).offset == 7 << 20
    if layout == "per-blob":
        with refused_as_guest(0x1201, "free in the window"):
            place(methods, create(methods, 8 << 20).blob)
    with refused_as_guest(0x1205, "not inside the window"):
        place(methods, create(methods).blob, offset=WINDOW)


def test_outside_of_the_bar_takes_an_agent_and_a_policy(methods: Methods, fe: FrontEnd) -> None:
    blob = create(methods).blob
    with pytest.raises(RpcError, match=r'slots = "agent".*allow_guest_ram = true') as refused:
        place(methods, blob, guest_phys_addr=1 << 32)
    assert kind_of(refused.value) == "not-possible"
    with pytest.raises(RpcError, match="one of them") as refused:
        place(methods, blob, guest_phys_addr=1 << 32, offset=0)
    assert refused.value.code == ErrorCode.INVALID_PARAMS


def test_a_front_end_that_refuses_is_told_as_the_host(
    methods: Methods, daemon: DaemonThread, short_directory: Path
) -> None:
    fe = FrontEnd.connect(short_directory / "gpu0.sock")
    with fe.handshake(without=ProtocolFeature.BACKEND_REQ):
        blob = create(methods).blob
        with pytest.raises(HostError, match="no back-end channel"):
            place(methods, blob)
        (listed,) = methods.call("blob.list").items
        assert not listed.mapped


def test_a_listing_in_pages(methods: Methods, fe: FrontEnd) -> None:
    made = [create(methods, 4096).blob for _ in range(5)]
    first = methods.call("blob.list", limit=2)
    rest = methods.call("blob.list", offset=2)
    assert (first.total, first.offset, rest.offset) == (5, 0, 2)
    assert [blob.blob for blob in (*first.items, *rest.items)] == made
    assert methods.call("blob.list", offset=9).items == ()


def test_slots_are_what_the_front_end_has_mapped(
    methods: Methods, fe: FrontEnd, layout: str
) -> None:
    assert methods.call("slot.list").items == ()
    place(methods, create(methods).blob)
    (slot,) = methods.call("slot.list", device="gpu0").items
    whole = (0, WINDOW) if layout == "window" else (WINDOW - SIZE, SIZE)
    assert (slot.bar_offset, slot.memory_size) == whole
    assert (slot.owner, slot.slot, slot.use, slot.flags) == ("frontend", None, "bar", 0)
    fe.reset()
    assert methods.call("slot.list").items == ()
