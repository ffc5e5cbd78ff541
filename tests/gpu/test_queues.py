"""Commands in a queue: they are counted and answered, and refused ones are logged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import LOW, PAGE, Machine
from tests.hostile.siege import command
from vgpud.gpu.queues import GpuQueue
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire import commands, dma
from vgpud.gpu.wire.command_codec import Command, encode
from vgpud.gpu.wire.header import decode_header
from vgpud.gpu.wire.protocol import Flag, ResponseType
from vgpud.gpu.work import Done
from vgpud.vhost.ring import CUT, REQUEST_LIMIT
from vgpud.vhost.split_ring import BufferList, Chain
from vgpud.vhost.virtqueue import Virtqueue


class Answers(Virtqueue):
    """The answers of a queue without a ring."""

    def __init__(self) -> None:
        self.types: list[int] = []
        self.last = b""

    def forget_unanswered(self) -> None:
        pass

    def publish(self) -> None:
        pass

    def complete(self, chain: Chain, response: bytes, *, publish: bool = True) -> None:
        self.last = response
        self.types.append(int.from_bytes(response[:4], "little"))


class Stand:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.answers = Answers()

    def handle(self, *requests: Command | bytes, cursor: bool = False) -> list[int]:
        """The types of the answers."""

        async def whole() -> None:
            timelines = Timelines()
            queue = GpuQueue(self.machine.gpu, timelines, cursor=cursor)
            queue.queue = self.answers
            for request in requests:
                data = request if isinstance(request, bytes) else encode(request)
                waiting = queue.handle(Chain(0, (), ()), data)
                if waiting is not None:
                    await waiting

        asyncio.run(whole())
        return self.answers.types


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Machine() as machine:
        yield Stand(machine)


def test_a_refusal_names_the_device_and_the_resource(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ResponseType.ERR_INVALID_RESOURCE_ID
    # At once, and after some waiting.
    assert stand.handle(d.unref(7), d.ctx_create(), d.create_blob(8, PAGE), d.unmap_blob(8)) == [
        bad,
        ResponseType.OK_NODATA,
        ResponseType.OK_NODATA,
        ResponseType.ERR_INVALID_PARAMETER,
    ]
    name = stand.machine.spec.name
    heads = [record.getMessage().partition(" type=")[0] for record in caplog.records]
    assert f"command refused device={name} resource=7" in heads
    assert f"command refused device={name} resource=8" in heads
    assert stand.machine.gpu.counters.refused == 2


def test_a_refusal_of_no_resource_names_none(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    stand.handle(b"short", d.ctx_create(0))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert not any("resource=" in line for line in lines)


def test_commands_are_counted_by_kind_whatever_becomes_of_them(stand: Stand) -> None:
    stand.handle(d.unref(7), d.ctx_create(), d.unref(7))
    stand.handle(d.unref(7), cursor=True)  # there is no such thing on that queue
    assert stand.machine.gpu.counters.commands == {
        commands.ResourceUnref: 2,
        commands.CtxCreate: 1,
    }


def long_chain(head: int, buffers: int) -> Chain:
    return Chain(head, (), BufferList.of(tuple((at, 1) for at in range(buffers))))


def test_a_chain_of_many_buffers_is_charged_until_it_is_answered(stand: Stand) -> None:
    quota = stand.machine.gpu.quota
    before = quota.used
    fenced = encode(command(commands.GetDisplayInfo, flags=Flag.FENCE))

    async def whole() -> None:
        timelines = Timelines()
        queue = GpuQueue(stand.machine.gpu, timelines, cursor=False)
        queue.queue = stand.answers
        for end in ("answered", "forgotten", "refused"):
            finish: list[Done] = []
            timelines.run(None, finish.append, lambda _: None)
            queue.handle(long_chain(0, 1000), fenced)
            queue.handle(long_chain(1, 2), fenced)
            assert quota.used == before + 16_000
            queue.handle(long_chain(0, 1000), fenced)  # taken again after a stop
            assert quota.used == before + 16_000
            if end == "refused":
                limit, quota.limit = quota.limit, quota.used + 15_999
                queue.handle(long_chain(2, 1000), fenced)
                quota.limit = limit
                assert stand.answers.types == [ResponseType.ERR_OUT_OF_MEMORY]
            if end == "forgotten":
                timelines.drop()
                queue.forget()
            else:
                finish[0](None)
            assert quota.used == before
            stand.answers.types.clear()

    asyncio.run(whole())


def test_a_request_that_was_cut_is_refused_with_its_fence(stand: Stand) -> None:
    async def whole() -> None:
        queue = GpuQueue(stand.machine.gpu, Timelines(), cursor=False)
        queue.queue = stand.answers
        request = encode(command(commands.GetDisplayInfo, flags=Flag.FENCE, fence_id=77))
        queue.handle(Chain(0, (), (), cut=True), request + bytes(CUT - len(request)))

    asyncio.run(whole())
    assert stand.answers.types == [ResponseType.ERR_UNSPEC]
    header = decode_header(stand.answers.last)
    assert header is not None
    assert (header.flags, header.fence_id) == (Flag.FENCE, 77)


def test_a_handler_that_never_begins_leaves_no_coroutine() -> None:
    # As where the ring stops in the same turn of the event loop; warnings are errors.
    async def test(machine: Machine) -> None:
        queue = GpuQueue(machine.gpu, Timelines(), cursor=False)
        queue.queue = Answers()
        waiting = queue.handle(Chain(0, (), ()), encode(d.map_blob(1, 0)))
        assert waiting is not None
        waiting.close()

    with Machine() as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        asyncio.run(test(machine))


def test_no_more_is_read_of_a_long_request_than_its_command_can_have(stand: Stand) -> None:
    machine = stand.machine
    machine.do(d.ctx_create())

    async def whole() -> None:
        size = GpuQueue(machine.gpu, Timelines(), cursor=False).request_size
        attach = d.attach_backing(1, (LOW, PAGE))
        assert size(encode(d.unref(1)) + bytes(CUT)) == commands.ResourceUnref.end
        assert size(encode(attach)) == size(encode(d.create_blob(1, PAGE))) == REQUEST_LIMIT
        for ctx_id in (1, 77):  # there is no context 77
            longest = size(encode(command(commands.Submit3D, b"", ctx_id=ctx_id)))
            assert longest == commands.Submit3D.end + dma.MAX_STREAM
        assert size(b"short") == size(bytes(CUT)) == 0

    asyncio.run(whole())
    nops, blits = ([packet] * dma.MAX_PACKETS for packet in (dma.Nop(), d.blit(1, 1, 4, *[0] * 6)))
    assert len(dma.encode(nops)) < len(dma.encode(blits)) == dma.MAX_STREAM
