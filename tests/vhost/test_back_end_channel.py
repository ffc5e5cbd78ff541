"""The back-end channel: its end, its replacement, answers that make no sense, notices."""

from __future__ import annotations

import asyncio

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
from vgpud.vhost.wire.back_end_channel import ConfigChange


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
                await vmm.answer()
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
            await vmm.answer()
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
            await vmm.answer()
            await task

    run(test)
