"""The display channel's requests: features, modes and EDID, and bad replies."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from tests.gpu.display.display_vmm import EDID, PATIENCE, S1, Screen, Vmm, connected, run
from tests.gpu.display.front_end_messages import encode_reply
from vgpud.errors import PeerError, VgpudError
from vgpud.gpu.display import channel as serve_display
from vgpud.gpu.display import messages as display
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.errors import response_code
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ResponseType
from vgpud.gpu.wire.responses import DisplayInfo, DisplayMode, Edid
from vgpud.unix import eventfd
from vgpud.unix.stream_socket import StreamSocket

MODES = tuple(DisplayMode(Rect(at, 0, 640 + at, 480), enabled=at < 2) for at in range(16))


def test_of_the_features_only_edid_is_taken() -> None:
    async def test() -> None:
        async with connected(greet=False) as (_, vmm, __):
            await vmm.greet(int(EDID | 1 << 1 | 1 << 63))
            assert await vmm.all() == []

    run(test)


def test_modes_come_from_the_vmm() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            asking = asyncio.create_task(channel.modes())
            assert await vmm.next() == (display.DisplayGetInfo(), b"")
            assert not asking.done()
            await vmm.answer(DisplayInfo(MODES))
            assert await asking == MODES

    run(test)


def test_edid_comes_from_the_vmm() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            asking = asyncio.create_task(channel.edid(1))
            assert await vmm.next() == (display.DisplayGetEdid(S1), b"")
            await vmm.answer(Edid(bytes(range(256))))
            assert await asking == bytes(range(256))

    run(test)


def test_a_guest_that_asks_before_the_vmm_has_said_whether_it_has_edid() -> None:
    async def test() -> None:
        async with connected(greet=False) as (channel, vmm, _):
            asking = asyncio.create_task(channel.edid(1))
            await asyncio.sleep(0.01)
            assert not asking.done()
            await vmm.greet()
            assert await vmm.next() == (display.DisplayGetEdid(S1), b"")
            await vmm.answer(Edid(b"\1" * 128))
            assert await asking == b"\1" * 128

    run(test)


def test_a_vmm_without_edid_is_not_asked() -> None:
    async def test() -> None:
        async with connected(greet=False) as (channel, vmm, _):
            await vmm.greet(0)
            with pytest.raises(VgpudError, match="no EDID") as caught:
                await channel.edid(0)
            assert response_code(caught.value) == ResponseType.ERR_UNSPEC
            assert await vmm.all() == []

    run(test)


def test_questions_are_answered_in_order_behind_a_full_socket() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            screen.show(0, 1024, 1024)
            channel.scanout(0, 1024, 1024)
            for frame in (1, 2, 3):
                screen.fill(0, frame)
                channel.damage(0, Rect(0, 0, 1024, 1024))
                await asyncio.sleep(0.01)
            asking = [asyncio.create_task(channel.modes()), asyncio.create_task(channel.edid(1))]
            await asyncio.sleep(0)
            kinds = [type((await vmm.next())[0])]
            while kinds[-1] is not display.DisplayGetEdid:
                kinds.append(type((await vmm.next())[0]))
            # No more than what the socket holds and the frame that is on its way comes before them.
            frames = kinds.count(display.DisplayUpdate)
            assert frames in (1, 2)
            assert kinds == [
                display.DisplayScanout,
                *[display.DisplayUpdate] * frames,
                display.DisplayGetInfo,
                display.DisplayGetEdid,
            ]
            await vmm.answer(DisplayInfo(MODES))
            await vmm.answer(Edid(b"\2" * 128))
            assert await asking[0] == MODES
            assert await asking[1] == b"\2" * 128
            assert [type(message) for message, _ in await vmm.all()] == [display.DisplayUpdate]

    run(test)


def test_who_gives_up_asking_does_not_take_the_next_ones_answer() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            first = asyncio.create_task(channel.modes())
            await vmm.next()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            second = asyncio.create_task(channel.modes())
            await vmm.next()
            await vmm.answer(DisplayInfo(MODES[:1] * 16))
            await vmm.answer(DisplayInfo(MODES))
            assert await second == MODES

    run(test)


def test_who_asks_for_the_same_before_it_is_sent_shares_the_answer() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            first, second = (asyncio.create_task(channel.modes()) for _ in range(2))
            other = asyncio.create_task(channel.edid(1))
            assert await vmm.next() == (display.DisplayGetInfo(), b"")
            third = asyncio.create_task(channel.modes())  # the answer may be older than that
            first.cancel()
            await vmm.next()
            await vmm.answer(DisplayInfo(MODES))
            await vmm.answer(Edid(b"\2" * 128))
            assert await second == MODES
            assert await other == b"\2" * 128
            assert await vmm.next() == (display.DisplayGetInfo(), b"")
            assert not third.done()
            await vmm.answer(DisplayInfo(MODES[:1] * 16))
            assert await third == MODES[:1] * 16
            assert await vmm.all() == []

    run(test)


@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_a_vmm_that_does_not_answer_is_asked_a_few_times(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            if end == "late":
                monkeypatch.setattr(serve_display, "REPLY_TIMEOUT", 0.002)
            for _ in range(50):
                asking = [asyncio.create_task(channel.modes()) for _ in range(3)]
                await asyncio.sleep(0.001)
                if end == "cancelled":
                    for task in asking:
                        task.cancel()
                await asyncio.wait(asking)
                for task in asking:
                    assert task.cancelled() or isinstance(task.exception(), VgpudError)
            assert not channel._unsent
            monkeypatch.setattr(serve_display, "REPLY_TIMEOUT", PATIENCE)
            last = asyncio.create_task(channel.modes())
            sent = len(await vmm.all())
            assert 0 < sent <= serve_display.ALIKE
            for _ in range(sent):
                await vmm.answer(DisplayInfo(MODES[:1] * 16))
            assert await vmm.next() == (display.DisplayGetInfo(), b"")
            await vmm.answer(DisplayInfo(MODES))
            assert await last == MODES

    run(test)


def test_the_end_of_the_socket_answers_who_waits() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            asking = asyncio.create_task(channel.modes())
            await vmm.next()
            vmm.socket.close()
            with pytest.raises(VgpudError, match="did not answer GET_DISPLAY_INFO") as caught:
                await asking
            assert response_code(caught.value) == ResponseType.ERR_UNSPEC

    run(test)


def test_a_vmm_that_goes_before_it_greets_ends_the_link_quietly() -> None:
    async def test() -> None:
        async with connected(greet=False) as (_, vmm, __):
            await vmm.next()

    run(test)


def test_after_the_end_nobody_waits() -> None:
    """A guest's command must not take seconds to fail because the VMM has closed its display."""

    async def test() -> None:
        async with connected() as (channel, vmm, _):
            vmm.socket.close()
            await asyncio.sleep(0.01)
            async with asyncio.timeout(1):
                with pytest.raises(VgpudError):
                    await channel.modes()

    run(test)


def test_patience_is_shorter_than_the_guests() -> None:
    assert serve_display.REPLY_TIMEOUT < 5  # Linux, virtio_gpu_get_edids and virtio_gpu_probe


def late(reply: display.DisplayReply) -> bytes:
    return encode_reply(reply)


NONSENSE = {
    "not asked for": late(DisplayInfo(MODES)),
    "asked for before": late(display.DisplayFeatures(1)),
    "another's answer": late(Edid(b"\0" * 128)),
    "a dma-buf's": struct.pack("=III", 10, 4, 0),
    "a request": display.encode(display.DisplayGetInfo()),
    "too short": b"\3\0\0\0\4\0\0\0\1\0\0\0\0",
    "too long": b"\3\0\0\0\4\0\0\0\xff\xff\xff\xff",
    "noise": b"\xff" * 40,
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_closes_it(nonsense: bytes) -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        vmm = Vmm(theirs)
        channel = DisplayChannel("gpu0", StreamSocket(ours), Screen(), Quota(1 << 30))
        running = asyncio.create_task(channel.run())
        async with asyncio.timeout(PATIENCE):
            await vmm.greet()
            asking = None
            if nonsense != NONSENSE["not asked for"]:
                asking = asyncio.create_task(channel.modes())
                await vmm.next()
            await vmm.socket.send(nonsense)
            with pytest.raises(ExceptionGroup) as caught:
                await running
            assert caught.group_contains(PeerError)
            await vmm.ended()
            if asking is not None:
                with pytest.raises(VgpudError):
                    await asking
        vmm.socket.close()

    run(test)


def test_answers_bytewise_and_with_descriptors_that_nobody_wants() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            asking = asyncio.create_task(channel.modes())
            await vmm.next()
            reply = encode_reply(DisplayInfo(MODES))
            with eventfd.create() as fd:
                for at in range(len(reply)):
                    await vmm.socket.send(reply[at : at + 1], [fd] if at % 100 == 0 else [])
            assert await asking == MODES

    run(test)


def test_close_in_mid_frame() -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        screen = Screen()
        vmm = Vmm(theirs)
        channel = DisplayChannel("gpu0", StreamSocket(ours), screen, Quota(1 << 30))
        running = asyncio.create_task(channel.run())
        async with asyncio.timeout(PATIENCE):
            await vmm.greet()
            screen.show(0, 1024, 1024)
            channel.scanout(0, 1024, 1024)
            channel.damage(0, Rect(0, 0, 1024, 1024))
            await asyncio.sleep(0.01)
            running.cancel()  # as a second GPU_SET_SOCKET does
            with pytest.raises(asyncio.CancelledError):
                await running
            await vmm.ended()
            channel.damage(0, Rect(0, 0, 1, 1))  # the device may not know yet
            channel.cursor_move(0, 1, 1, visible=True)
        vmm.socket.close()

    run(test)
