"""What somebody else than the guest has a session do, such as a client of the control API.

Owns the rule that such a thing never outlives the state of the device that it was begun in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from vgpud.errors import GuestError, VgpudError
from vgpud.gpu.wire.protocol import ResponseType

T = TypeVar("T")

_GONE: Final = "the front-end has gone"
_RESET: Final = "the device was reset meanwhile"


class Errands:
    """The errands of one session."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._refused: str | None = None  # why nothing may be begun

    async def run(self, errand: Coroutine[Any, Any, T], tasks: asyncio.TaskGroup) -> T:
        """Run one as a task of the group; raises what it raises.

        Only a bug ends the group: a `VgpudError` is for the caller alone. Raises `GuestError` where
        `stop` or the end of the group came first.
        """
        if self._refused is not None:
            errand.close()
            raise GuestError(ResponseType.ERR_UNSPEC, self._refused)
        guarded = _outcome(errand)
        try:
            task = tasks.create_task(guarded)
        except RuntimeError:  # the group is being cancelled
            guarded.close()
            errand.close()
            raise GuestError(ResponseType.ERR_UNSPEC, _GONE) from None
        self._running.add(task)
        # Not before: with whoever asked gone, it takes its time to undo what is half done.
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # of no effect, unless whoever asked has gone
        if task.cancelled():
            raise GuestError(ResponseType.ERR_UNSPEC, _RESET)
        outcome = task.result()
        if isinstance(outcome, VgpudError):
            raise outcome
        return outcome

    async def stop(self) -> None:
        """Cancel all of them, and wait until they have undone what was half done; meanwhile take no
        more."""
        before, self._refused = self._refused, self._refused or _RESET
        try:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait([*self._running])
        finally:
            self._refused = before

    async def close(self) -> None:
        """The same, and take no more."""
        self._refused = _GONE
        await self.stop()


async def _outcome(errand: Coroutine[Any, Any, T]) -> T | VgpudError:
    try:
        return await errand
    except VgpudError as error:
        return error
