"""What somebody else than the guest has a session do, such as a client of the control API.

Owns the rule that such a thing never outlives the state of the device that it was begun in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from vgpud.errors import GuestError, VgpudError
from vgpud.wire.gpu.protocol import ResponseType

T = TypeVar("T")


class Errands:
    """The errands of one session."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(self, errand: Coroutine[Any, Any, T], tasks: asyncio.TaskGroup) -> T:
        """Run one as a task of the group; raises what it raises.

        Only a bug ends the group: a `VgpudError` is for the caller alone. Raises `GuestError` where
        `stop` or the end of the group came first.
        """
        guarded = _outcome(errand)
        try:
            if self._closed:
                raise RuntimeError  # as the group does when it is being cancelled
            task = tasks.create_task(guarded)
        except RuntimeError:
            guarded.close()
            errand.close()
            raise GuestError(ResponseType.ERR_UNSPEC, "the front-end has gone") from None
        self._running.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._running.discard(task)
            task.cancel()  # of no effect, unless whoever asked has gone
        if task.cancelled():
            raise GuestError(ResponseType.ERR_UNSPEC, "the device was reset meanwhile")
        outcome = task.result()
        if isinstance(outcome, VgpudError):
            raise outcome
        return outcome

    async def stop(self) -> None:
        """Cancel all of them, and wait until they have undone what was half done."""
        if self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(list(self._running))

    async def close(self) -> None:
        """The same, and take no more."""
        self._closed = True
        await self.stop()


async def _outcome(errand: Coroutine[Any, Any, T]) -> T | VgpudError:
    try:
        return await errand
    except VgpudError as error:
        return error
