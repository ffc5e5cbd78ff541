"""Calls in threads of their own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from vgpud.memory.own_thread import in_own_thread


def test_a_call_runs_in_another_thread_and_its_error_is_raised() -> None:
    def fail() -> None:
        raise OSError("failed")

    async def main() -> None:
        assert await in_own_thread(threading.get_ident) != threading.get_ident()
        with pytest.raises(OSError, match="failed"):
            await in_own_thread(fail)

    asyncio.run(main())


def test_a_caller_that_is_cancelled_does_not_wait() -> None:
    going, end = threading.Event(), threading.Event()

    def wait() -> None:
        going.set()
        assert end.wait(10)

    async def main() -> None:
        task = asyncio.create_task(in_own_thread(wait))
        assert await asyncio.to_thread(going.wait, 10)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        end.set()

    asyncio.run(main())
