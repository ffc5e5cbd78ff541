"""Operations on a device that do not come from its guest, such as those of the control API.

None outlives the state of the device that it was begun in.
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
    """The operations under way on one device."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._refused: str | None = None  # why nothing may be begun

    async def run(self, operation: Coroutine[Any, Any, T], tasks: asyncio.TaskGroup) -> T:
        """Run one as a task of the group; raise what it raises.

        Only a bug ends the group: a `VgpudError` is for the caller alone. Raises `Interrupted`
        where `stop` or the end of the group came first.
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
        # Only when it is done: a cancelled operation still has to roll back.
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # of no effect, unless the caller was cancelled
        if task.cancelled():
            raise Interrupted(_RESET)
        outcome = task.result()
        if isinstance(outcome, VgpudError):
            raise outcome
        return outcome

    async def stop(self) -> None:
        """Cancel all of them, and wait until they have rolled back; meanwhile take no more."""
        before, self._refused = self._refused, self._refused or _RESET
        try:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait([*self._running])
        finally:
            self._refused = before

    async def close(self) -> None:
        """Stop all of them, and take no more."""
        self._refused = _GONE
        await self.stop()


async def _outcome(operation: Coroutine[Any, Any, T]) -> T | VgpudError:
    try:
        return await operation
    except VgpudError as error:
        return error
