"""Operations on a device that its guest has not requested, such as those of the control API.

They are cancelled when the device is reset, or saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from vgpud.errors import Interrupted, VgpudError, stored

T = TypeVar("T")

_GONE: Final = "the front-end has gone"


class Operations:
    """The operations in progress on one device."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._refused: str | None = None  # why no operation may start
        self._stopped = _GONE  # why they were stopped last
        self._closed = False

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
            raise Interrupted(self._stopped)
        outcome = task.result()
        try:
            if isinstance(outcome, VgpudError):
                raise outcome
            return outcome
        finally:
            del task, outcome  # an error would refer to this frame, and this frame to it

    async def stop(self, reason: str) -> None:
        """Cancel all operations, and wait until they have rolled back; no others start until
        `resume`."""
        self._stopped = self._refused = _GONE if self._closed else reason
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait([*self._running])

    def resume(self) -> None:
        """Let operations start again, unless the front-end has gone."""
        self._refused = _GONE if self._closed else None

    async def close(self) -> None:
        """Stop all operations, and start no others."""
        self._closed = True
        await self.stop(_GONE)


async def _outcome(operation: Coroutine[Any, Any, T]) -> T | VgpudError:
    try:
        return await operation
    except VgpudError as error:
        return stored(error)
