"""What some commands need before they can be executed, and what takes too long for the event loop:
the end of work on their resource, a long list of memory entries, a window that stays as it is, a
frame that has been taken whose pixels they change.
"""

from __future__ import annotations

from asyncio import Lock
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from vgpud.gpu.contexts import Submission
from vgpud.gpu.guest_memory import LONG_LIST, GuestMemory
from vgpud.gpu.quota import Quota
from vgpud.gpu.resources import GuestBlob, Resource, ResourceTable
from vgpud.gpu.scanouts import Scanouts, Waiting, settle
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.command_codec import Command, CommandWithEntries
from vgpud.gpu.wire.mem_entries import MemEntries
from vgpud.gpu.work import Answer, BackgroundWork

Outcome: TypeAlias = Answer | Submission | Coroutine[Any, Any, responses.Response | Submission]
"""The result of a command: its response, or a submission to start; or a coroutine that returns one
of them."""

_TRANSFERS = (
    commands.TransferToHost2D,
    commands.TransferToHost3D,
    commands.TransferFromHost3D,
)
_SHOWN = (
    commands.SetScanout,
    commands.SetScanoutBlob,
    commands.ResourceFlush,
    commands.UpdateCursor,
)

_C = TypeVar("_C", bound=CommandWithEntries)


class Preparation:
    """What the commands of one device need before they are executed by `execute`."""

    def __init__(
        self,
        resources: ResourceTable,
        scanouts: Scanouts,
        memory: GuestMemory,
        quota: Quota,
        executor: BackgroundWork,
        window_lock: Lock,
        execute: Callable[[Command], Outcome],
    ) -> None:
        self._resources = resources
        self._scanouts = scanouts
        self._memory = memory
        self._quota = quota
        self._executor = executor
        self._window_lock = window_lock
        self._execute = execute

    def needed(
        self, command: Command
    ) -> Coroutine[Any, Any, responses.Response | Submission] | None:
        """Return a coroutine that waits for what the command needs, and then executes the command;
        None if it can be executed now."""
        wait = self._resource_needs(command)
        if wait is None and (unsettled := self._scanouts.unsettled(command)):
            return self._after_settling(unsettled, command)
        return None if wait is None else self._after(wait, command)

    def _resource_needs(self, command: Command) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Return what waits for what the command's resource needs; None if it needs nothing."""
        resource_id = getattr(command, "resource_id", None)
        if resource_id:
            if self._executor.busy(resource_id):
                # The command may move or free the resource's memory.
                return partial(self._executor.drained, resource_id)
            resource = self._resources.find(resource_id)
            backing = None if resource is None else resource.backing
            if backing is not None and backing.stale and _reads_backing(command, resource):
                return partial(backing.resolve, self._quota, self._executor)
        return None

    def with_list(self, execute: Callable[[_C], Outcome]) -> Callable[[_C], Outcome]:
        """Return a function that executes a command with entries, and has a long list of them
        resolved before."""

        def run(command: _C) -> Outcome:
            if len(command.entries) <= LONG_LIST:
                return execute(command)
            return self._with_long_list(execute, command, command.entries)

        return run

    async def with_window(
        self, prepare: Callable[[], Coroutine[Any, Any, Submission]]
    ) -> Submission:
        """Prepare a submission while no blob is moved in or out of the window."""
        async with self._window_lock:
            return await prepare()

    async def _after(
        self, wait: Callable[[], Coroutine[Any, Any, None]], command: Command
    ) -> responses.Response | Submission:
        await wait()
        while (more := self._resource_needs(command)) is not None:
            await more()
        return await self._after_settling(self._scanouts.unsettled(command), command)

    async def _after_settling(
        self, unsettled: Sequence[Waiting], command: Command
    ) -> responses.Response | Submission:
        """Wait for frames once: where there is no memory to take them, they stay unsettled."""
        await settle(unsettled)
        while (wait := self._resource_needs(command)) is not None:
            await wait()
        outcome = self._execute(command)
        return await outcome if isinstance(outcome, Coroutine) else outcome

    async def _with_long_list(
        self, execute: Callable[[_C], Outcome], command: _C, entries: MemEntries
    ) -> responses.Response:
        async with self._memory.resolved(entries, self._quota, self._executor):
            return await _response(execute(command))


def _reads_backing(command: Command, resource: Resource | None) -> bool:
    """Return whether a command reads or writes its resource's guest memory; those that only free
    it must not need memory themselves."""
    return isinstance(command, _TRANSFERS) or (
        isinstance(resource, GuestBlob) and isinstance(command, _SHOWN)
    )


async def _response(outcome: Outcome) -> responses.Response:
    response = await outcome if isinstance(outcome, Coroutine) else outcome
    assert not isinstance(response, Submission)  # a SUBMIT_3D names no resource
    return response
