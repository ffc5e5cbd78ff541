"""Operations on a device that its guest has not requested, such as those of the control API.

A reset of the device cancels them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from vgpud.errors import Interrupted, VgpudError

T = TypeVar("T")

_GONE: Final = "the front-end has gone"
_RESET: Final = "the device was reset meanwhile"


class Operations:
    """The operations in progress on one device."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._refused: str | None = None  # why no operation may start

    async def run(self, operation: Coroutine[Any, Any, T], tasks: asyncio.TaskGroup) -> T:
        """Run an operation as a task of the group and return its result; raise what it raises.

        A `VgpudError` is raised to the caller, and does not end the group. Raises `Interrupted` if
        `stop` or the end of the group cancels the operation.
        """
        if self._refused is not None:
            operation.close()
            raise Interrupted(self._refused)
        guarded = _outcome(operation)
        try:
            task = tasks.create_task(guarded)
        except RuntimeError:  # the group is being cancelled
            guarded.close()
            operation.close()
            raise Interrupted(_GONE) from None
        self._running.add(task)
        # Discard only when done, because a cancelled operation still has to roll back.
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # has no effect unless the caller was cancelled
        if task.cancelled():
            raise Interrupted(_RESET)
        outcome = task.result()
        if isinstance(outcome, VgpudError):
            raise outcome
        return outcome

    async def stop(self) -> None:
        """Cancel all operations, and wait until they have rolled back; no others start
        meanwhile."""
        before, self._refused = self._refused, self._refused or _RESET
        try:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait([*self._running])
        finally:
            self._refused = before

    async def close(self) -> None:
        """Stop all operations, and start no others."""
        self._refused = _GONE
        await self.stop()


async def _outcome(operation: Coroutine[Any, Any, T]) -> T | VgpudError:
    try:
        return await operation
    except VgpudError as error:
        return error
