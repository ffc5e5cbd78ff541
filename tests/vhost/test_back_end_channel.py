"""The back-end channel: its end, its replacement, answers that make no sense, notices."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.support.back_end_vmm import (
    PATIENCE,
    SHMID,
    SIZE,
    Vmm,
    connected,
    mapping,
    run,
    start_map,
)
from vgpud.errors import HostError, PeerError
from vgpud.slots.front_end import FrontEndSlots
from vgpud.unix.fd import Fd
from vgpud.vhost import back_end_channel
from vgpud.vhost.wire.back_end_channel import ConfigChange, ShmemUnmap, Withdrawn


def test_the_end_of_the_channel_fails_who_waits() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            tasks = [await start_map(slots, vmm, fd, at << 16) for at in range(2)]
            tasks.append(asyncio.create_task(slots.unmap(0, 0x2000)))
            await vmm.request()
            vmm.socket.close()
            for task in tasks:
                with pytest.raises(HostError):
                    await task

    run(test)


def test_after_the_end_of_the_channel_nobody_waits() -> None:
    async def test(fd: Fd) -> None:
        slots = FrontEndSlots(SHMID)
        vmm = Vmm(slots)
        serving = asyncio.create_task(vmm.link.run())
        await asyncio.sleep(0)
        vmm.socket.close()
        await serving
        async with asyncio.timeout(1):
            with pytest.raises(HostError):
                await slots.map(fd, 0, 0, SIZE)
            with pytest.raises(HostError):
                await slots.unmap(0, SIZE)
        slots.connect(None)

    run(test)


def test_close_fails_who_waits() -> None:
    async def test(fd: Fd) -> None:
        slots = FrontEndSlots(SHMID)
        vmm = Vmm(slots)
        task = asyncio.create_task(slots.map(fd, 0, 0, SIZE))
        await asyncio.sleep(0)
        slots.connect(None)
        with pytest.raises(HostError):
            await task
        vmm.socket.close()

    run(test)


def test_a_new_channel_takes_the_place_of_the_old() -> None:
    """As a session does for a second SET_BACKEND_REQ_FD."""

    async def test(fd: Fd) -> None:
        async with asyncio.timeout(PATIENCE):
            slots = FrontEndSlots(SHMID)
            old = Vmm(slots)
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(old.link.run())
                waits = await start_map(slots, old, fd, 0)
                serving.cancel()
                vmm = Vmm(slots)
                tasks.create_task(vmm.link.run())
                again = tasks.create_task(slots.map(fd, 0x1000, 0x8000, 0x2000))
                with pytest.raises(HostError):
                    await waits
                assert (await vmm.request())[0] == mapping(0x8000)
                await vmm.finish_map()
                await again
                vmm.socket.close()
            old.socket.close()
            slots.connect(None)

    run(test)


@pytest.mark.parametrize("nonsense", ["0a", "ff", "09"])
def test_an_answer_that_makes_no_sense_ends_the_channel(nonsense: str) -> None:
    async def test(fd: Fd) -> None:
        slots = FrontEndSlots(SHMID)
        vmm = Vmm(slots)
        serving = asyncio.create_task(vmm.link.run())
        task = await start_map(slots, vmm, fd, 0)
        answer = bytes.fromhex("000000 05000000 08000000 0000000000000000")
        if nonsense == "09":  # it is right once
            await vmm.finish_map()
            await task
        await vmm.socket.send(bytes.fromhex(nonsense) + answer, [fd, fd])  # fds are not kept
        with pytest.raises(ExceptionGroup) as caught:
            await serving
        assert caught.group_contains(PeerError)
        if nonsense != "09":
            with pytest.raises(HostError):
                await task
        slots.connect(None)
        vmm.socket.close()

    run(test)


@pytest.mark.parametrize("reply_ack", [False, True])
def test_config_changed_waits_for_nobody(reply_ack: bool) -> None:
    async def test(fd: Fd) -> None:
        async with connected(reply_ack=reply_ack) as (slots, vmm):
            vmm.link.config_changed()
            assert (await vmm.request())[0] == ConfigChange()
            assert len(vmm.unanswered) == reply_ack
            task = await start_map(slots, vmm, fd, 0)
            if reply_ack:
                await vmm.answer(1)
            assert not task.done()
            await vmm.finish_map()
            await task

    run(test)


def test_nothing_is_sent_while_held() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            vmm.link.hold()
            posted = vmm.link.post(mapping(0), fd.dup())
            for _ in range(3):
                vmm.link.config_changed()
            await vmm.link.confirm_config_change()
            await vmm.nothing()
            with pytest.raises(HostError, match="try again when it runs") as refused:
                await slots.map(fd, 0, 0, SIZE)
            assert refused.value.errno == errno.EAGAIN
            vmm.link.resume()
            message, fds = await vmm.request()
            assert (message, len(fds)) == (mapping(0), 1)
            assert await vmm.request() == (ConfigChange(), [])
            await vmm.answer()
            await vmm.answer()
            await vmm.link.answer("a map", posted)

    run(test)


def test_what_is_held_is_dropped_with_the_driver() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (_, vmm):
            vmm.link.hold()
            vmm.link.post(mapping(0), fd.dup())
            vmm.link.config_changed()
            vmm.link.post(ShmemUnmap(SHMID, 0x4000, 0x2000), undo=True)
            vmm.link.drop()
            vmm.link.resume()
            # The front-end may still carry out what this undoes.
            assert await vmm.request() == (ShmemUnmap(SHMID, 0x4000, 0x2000), [])
            await vmm.answer()
            await vmm.nothing()

    run(test)


def test_a_request_is_taken_back_that_the_front_end_has_not_begun_to_receive() -> None:
    """As QEMU, which reads no request before it has stopped its vhost device."""

    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = asyncio.create_task(slots.map(fd, 0x1000, 0, 0x2000))
            change = asyncio.create_task(vmm.link.confirm_config_change())
            await asyncio.sleep(0.01)
            vmm.link.hold()
            await change  # which happens when the channel is used again, if at all
            message, fds = await vmm.request()
            assert (message, len(fds)) == (Withdrawn(mapping(0).request_id), 1)
            await vmm.nothing()
            assert not task.done()
            vmm.link.resume()
            message, fds = await vmm.request()
            assert (message, len(fds)) == (mapping(0), 1)
            await vmm.answer()
            # The change that was held is first, and another one follows the map.
            assert await vmm.request() == (ConfigChange(), [])
            await vmm.answer()
            await vmm.catch_up()
            await task

    run(test)


def test_a_request_is_finished_that_the_front_end_has_begun_to_receive() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = asyncio.create_task(slots.map(fd, 0x1000, 0, 0x2000))
            data, fds = await vmm.socket.recv(vmm.channel.bytes_wanted)
            vmm.channel.receive_data(data)
            assert (len(data), len(fds)) == (1, 1)
            fds[0].close()
            vmm.link.hold()
            assert (await vmm.request())[0] == mapping(0)
            await vmm.answer()
            await task

    run(test)


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_is_given_up_is_not_done_later(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (_, vmm):
            monkeypatch.setattr(back_end_channel, "REPLY_TIMEOUT", 0.05)
            if not begun:
                vmm.link.hold()
            task = asyncio.create_task(vmm.link.answer("it", vmm.link.post(mapping(0), fd.dup())))
            with pytest.raises(HostError, match="did not answer"):
                await task
            vmm.link.resume()
            if begun:
                assert (await vmm.request())[0] == Withdrawn(mapping(0).request_id)
            await vmm.nothing()

    run(test)


def test_a_front_end_that_never_answers_loses_its_channel() -> None:
    """As one whose driver is reset after each map that it begins."""

    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            for _ in range(back_end_channel.MAX_UNANSWERED // 2):
                task = asyncio.create_task(slots.map(fd, 0, 0, SIZE))
                await vmm.request()
                task.cancel()
                await asyncio.wait([task])
                await vmm.request()  # what undoes it
            assert vmm.link.open
            with pytest.raises(HostError):
                await slots.map(fd, 0, 0, SIZE)
            assert not vmm.link.open

    run(test)
