"""Mappings through a front-end: answers in order, refusals and cancellation."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from tests.support.back_end_vmm import SHMID, SIZE, connected, mapping, run, start_map
from vgpud.errors import HostError
from vgpud.slots.front_end import FrontEndSlots
from vgpud.unix.fd import Fd
from vgpud.vhost import back_end_channel
from vgpud.vhost.wire.back_end_channel import ConfigChange, ShmemUnmap


def test_map_and_unmap_return_when_the_front_end_has_done_so() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = await start_map(slots, vmm, fd, 0x8000)
            await asyncio.sleep(0.01)
            assert not task.done()
            await vmm.answer()
            await asyncio.sleep(0.01)
            assert not task.done()  # QEMU 11.1 answers before the mapping is in force
            await vmm.catch_up()
            await task
            assert not fd.closed
            unmap = asyncio.create_task(slots.unmap(0x8000, 0x2000))
            assert await vmm.request() == (ShmemUnmap(SHMID, 0x8000, 0x2000), [])
            assert not unmap.done()
            await vmm.answer()
            await unmap

    run(test)


def test_the_file_that_was_given_is_the_one_that_is_sent() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            inode = os.fstat(fd.fileno()).st_ino
            other = fd.dup()
            task = asyncio.create_task(slots.map(other, 0, 0, SIZE))
            await asyncio.sleep(0)
            other.close()  # whoever asked may close it at once
            data, fds = await vmm.socket.recv(4096)
            assert os.fstat(fds[0].fileno()).st_ino == inode
            for received in fds:
                received.close()
            vmm.channel.receive_data(data)
            await vmm.request()
            await vmm.finish_map()
            await task

    run(test)


def test_answers_belong_to_requests_in_order() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            tasks = [await start_map(slots, vmm, fd, at << 16) for at in range(4)]
            for status in (0, 7, 0, 9):
                await vmm.answer(status)
            for _ in range(2):
                await vmm.catch_up()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[0::2] == [None, None]
            assert "status 7" in str(results[1])
            assert "status 9" in str(results[3])

    run(test)


def test_requests_go_out_in_the_order_they_were_made() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            tasks = []
            for at in range(3):
                tasks.append(asyncio.create_task(slots.map(fd, 0x1000, at << 16, 0x2000)))
                tasks.append(asyncio.create_task(slots.unmap(at << 16, 0x2000)))
            for at in range(3):
                assert (await vmm.request())[0] == mapping(at << 16)
                assert (await vmm.request())[0] == ShmemUnmap(SHMID, at << 16, 0x2000)
            for _ in tasks:
                await vmm.answer()
            for _ in range(3):
                await vmm.catch_up()
            await asyncio.gather(*tasks)

    run(test)


def test_a_front_end_that_does_not_know_the_request_after_a_map_has_mapped_it() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = await start_map(slots, vmm, fd, 0)
            await vmm.answer()
            assert await vmm.request() == (ConfigChange(), [])
            await vmm.answer(1)
            await task

    run(test)


def test_a_map_cancelled_before_it_is_in_force_is_undone() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = await start_map(slots, vmm, fd, 0x8000)
            await vmm.answer()
            assert await vmm.request() == (ConfigChange(), [])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await vmm.request())[0] == ShmemUnmap(SHMID, 0x8000, 0x2000)
            await vmm.answer()
            await vmm.answer()
            assert len(slots.mapped) == 0

    run(test)


@pytest.mark.parametrize("status", [1, 22, (1 << 64) - 1])
def test_a_refusal_is_a_host_error(status: int) -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = await start_map(slots, vmm, fd, 0)
            await vmm.answer(status)
            with pytest.raises(HostError, match=rf"SHMEM_MAP of 0x2000 at 0x0: .*status {status}"):
                await task
            await vmm.nothing()  # what was not mapped need not be undone
            unmap = asyncio.create_task(slots.unmap(0, 0x2000))
            await vmm.request()
            await vmm.answer(status)
            with pytest.raises(HostError, match="SHMEM_UNMAP of 0x2000 at 0x0"):
                await unmap

    run(test)


def test_without_a_channel_everything_is_refused_at_once() -> None:
    async def test(fd: Fd) -> None:
        slots = FrontEndSlots(SHMID)
        with pytest.raises(HostError) as caught:
            await slots.map(fd, 0, 0, SIZE)
        assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(HostError):
            await slots.unmap(0, SIZE)
        slots.connect(None)

    run(test)


def test_a_map_cancelled_in_mid_flight_is_undone() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = await start_map(slots, vmm, fd, 0x8000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # Before the answer has come, the undoing is on its way, and before any new map.
            again = asyncio.create_task(slots.map(fd, 0x1000, 0x8000, 0x2000))
            assert (await vmm.request())[0] == ShmemUnmap(SHMID, 0x8000, 0x2000)
            assert (await vmm.request())[0] == mapping(0x8000)
            for status in (0, 0, 5):
                await vmm.answer(status)
            with pytest.raises(HostError, match="status 5"):  # its own answer, not another's
                await again

    run(test)


def test_a_map_cancelled_as_its_answer_comes_is_undone_too() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = await start_map(slots, vmm, fd, 0x8000)
            await vmm.answer()
            while vmm.link._sent:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert not task.done()  # it has been answered, and does not know it yet
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await vmm.request())[0] == ShmemUnmap(SHMID, 0x8000, 0x2000)
            await vmm.answer()

    run(test)


def test_an_unmap_cancelled_in_mid_flight_still_happens() -> None:
    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            task = asyncio.create_task(slots.unmap(0x8000, 0x2000))
            await vmm.request()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            again = await start_map(slots, vmm, fd, 0x8000)
            await vmm.answer(3)  # the unmap's, in which nobody is interested
            await vmm.finish_map()
            await again
            # That one is over: what was mapped since is unmapped by a request of its own.
            task = asyncio.create_task(slots.unmap(0x8000, 0x2000))
            assert await vmm.request() == (ShmemUnmap(SHMID, 0x8000, 0x2000), [])
            await vmm.answer()
            await task

    run(test)


@pytest.mark.parametrize("status", [0, 3])
def test_an_unmap_that_was_given_up_is_not_asked_for_twice(status: int) -> None:
    async def test(_: Fd) -> None:
        async with connected() as (slots, vmm):
            task = asyncio.create_task(slots.unmap(0x8000, 0x2000))
            await vmm.request()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            again = asyncio.create_task(slots.unmap(0x8000, 0x2000))
            await vmm.nothing()
            await vmm.answer(status)
            result = (await asyncio.gather(again, return_exceptions=True))[0]
            assert isinstance(result, HostError) == bool(status)

    run(test)


def test_an_unmap_that_was_refused_can_be_asked_for_again() -> None:
    async def test(_: Fd) -> None:
        async with connected() as (slots, vmm):
            for status in (3, 0):
                task = asyncio.create_task(slots.unmap(0x8000, 0x2000))
                assert await vmm.request() == (ShmemUnmap(SHMID, 0x8000, 0x2000), [])
                await vmm.answer(status)
                result = (await asyncio.gather(task, return_exceptions=True))[0]
                assert isinstance(result, HostError) == bool(status)

    run(test)


def test_a_front_end_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map is undone, behind it; an unmap goes on, and its late answer is the answer."""
    patience = back_end_channel.REPLY_TIMEOUT

    async def test(fd: Fd) -> None:
        async with connected() as (slots, vmm):
            monkeypatch.setattr(back_end_channel, "REPLY_TIMEOUT", 0.05)
            task = await start_map(slots, vmm, fd, 0x8000)
            with pytest.raises(HostError, match=r"did not answer.*: is the VMM stopped") as late:
                await task
            assert late.value.errno == errno.ETIMEDOUT
            assert (await vmm.request())[0] == ShmemUnmap(SHMID, 0x8000, 0x2000)
            unmap = asyncio.create_task(slots.unmap(0x4000, 0x2000))
            assert (await vmm.request())[0] == ShmemUnmap(SHMID, 0x4000, 0x2000)
            with pytest.raises(HostError, match="did not answer"):
                await unmap

            monkeypatch.setattr(back_end_channel, "REPLY_TIMEOUT", patience)
            again = asyncio.create_task(slots.unmap(0x4000, 0x2000))
            await vmm.nothing()
            for _ in range(3):
                await vmm.answer()
            await again
            # That one is over.
            unmap = asyncio.create_task(slots.unmap(0x4000, 0x2000))
            assert (await vmm.request())[0] == ShmemUnmap(SHMID, 0x4000, 0x2000)
            await vmm.answer()
            await unmap

    run(test)
