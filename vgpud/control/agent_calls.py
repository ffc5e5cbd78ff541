"""Slot operations as JSON-RPC calls to a slot agent, in order, and its answers.

A new call is sent only after all earlier calls have been answered. Calls that undo an operation are
sent without waiting, before any new call, so that an agent that was only slow ends up with the same
slots as the daemon's table. The calls are defined in `control.slot_calls`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vgpud.control.agent_link import AgentLink
from vgpud.control.rpc import Call, Failure, Result, encode_call
from vgpud.control.slot_calls import (
    PROT_READ,
    PROT_WRITE,
    SLOT_DELETE,
    SLOT_SET,
    SlotDelete,
    SlotSet,
    errno_of,
    printable_message,
)
from vgpud.errors import HostError, PeerError
from vgpud.publish import Json
from vgpud.slots.errors import AgentGoneError, AgentRefusedError, InDoubtError
from vgpud.slots.slot_mapping import duplicate
from vgpud.slots.table import DeleteSlot, Operation, SetSlot
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)

PATIENCE: Final = 10.0
"""Seconds that an agent may take to answer: far more than any slot operation takes, and less than
a guest's driver waits before it declares its device dead."""

_GONE: Final = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ENOENT}


@dataclass(slots=True, eq=False)
class AgentRequest:
    """A call about a slot to send, with its descriptor `fd`; `name` describes it in messages."""

    slot: int
    method: str
    params: dict[str, Json]
    name: str
    fd: Fd | None = None
    id: int = 0
    sent: bool = False

    def close(self) -> None:
        if self.fd is not None:
            self.fd.close()


class AgentCalls:
    """A `slots.agent_connection.AgentConnection` over `link`, which it owns.

    The calls get `ids`, none of which may have been used on the same socket before. An answer is
    overdue after `patience` seconds. Until it comes, no new call is sent, and each fails at once.
    """

    def __init__(self, link: AgentLink, ids: Iterator[int], *, patience: float = PATIENCE) -> None:
        self.link = link
        self._patience = patience
        self._ids = ids
        self._outbox: deque[AgentRequest] = deque()
        self._unanswered: dict[int, AgentRequest] = {}
        self._last: dict[int, AgentRequest] = {}  # by slot, of those that are not answered
        self._overdue = False

    @property
    def unanswered(self) -> int:
        return len(self._outbox) + len(self._unanswered)

    def close(self) -> None:
        for request in self._outbox:
            request.close()
        self._outbox.clear()
        self._unanswered.clear()
        self._last.clear()
        self.link.close()

    async def ask(self, operation: Operation, file: Fd | None) -> None:
        request = _request(operation, file)
        answer = await self._answer_to(request)
        if isinstance(answer, Failure):
            number = errno_of(answer.error) or errno.EREMOTEIO
            advice = f"the VMM's slot agent says: {printable_message(answer.error)}"
            raise AgentRefusedError(request.name, OSError(number, ""), advice)

    async def _answer_to(self, request: AgentRequest) -> Result | Failure:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(0 if self._overdue else self._patience) as limit:
                await self._settle()
                self._overdue = False
                limit.reschedule(loop.time() + self._patience)
                self._outbox.append(request)
                answer = await self._settle(request)
        except TimeoutError:
            self._overdue = True
            late = "" if request.sent else " earlier calls"
            advice = f"the VMM's slot agent has not answered{late}; is it still running?"
            raise _error(request, errno.ETIMEDOUT, advice) from None
        except PeerError as error:
            raise _error(request, errno.EPROTO, f"the VMM's slot agent: {error}") from error
        except OSError as error:
            number = error.errno or errno.EIO
            if number in _GONE:
                advice = "the VMM's slot agent is gone"
                raise AgentGoneError(request.name, OSError(number, ""), advice) from error
            raise _error(request, number, "") from error
        finally:
            if not request.sent:
                self._withdraw(request)
        assert answer is not None
        return answer

    def post(self, operation: Operation, file: Fd | None) -> None:
        undo = _request(operation, file)
        slot = operation.entry.slot
        last = self._last.get(slot)
        if isinstance(operation, DeleteSlot) and last is not None and last.params == undo.params:
            return  # it will be deleted, and nothing has been sent since
        self._last[slot] = undo
        self._outbox.append(undo)
        while self._outbox:
            request = self._outbox[0]
            try:
                self._send_first()
            except BlockingIOError:
                return  # the next call sends the rest
            except OSError as error:
                if error.errno in _GONE:
                    advice = "the VMM's slot agent is gone"
                    raise AgentGoneError(request.name, error, advice) from error
                _log.warning("not sent to the agent call=%s error=%s", request.name, error)

    def check(self) -> None:
        try:
            self.link.send(encode_call(Call("agent.check", {}, notification=True)), None)
        except BlockingIOError:
            pass
        except OSError as error:
            raise AgentGoneError("checking for the agent", error) from error

    async def _settle(self, last: AgentRequest | None = None) -> Result | Failure | None:
        """Send all calls of the outbox, wait for all answers, and return the answer to `last`."""
        answer = None
        while self._outbox:
            try:
                self._send_first()
            except BlockingIOError:
                await self.link.writable()
        while self._unanswered:
            incoming = await self.link.recv()
            if incoming is None:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            reply = incoming.expect_reply()
            request = self._unanswered.pop(reply.id, None) if isinstance(reply.id, int) else None
            if request is not None:
                self._forget(request)
            if request is not None and request is last:
                answer = reply
            elif request is not None and isinstance(reply, Failure):
                text = printable_message(reply.error)
                _log.info("late answer of the agent call=%s error=%s", request.name, text)
        return answer

    def _send_first(self) -> None:
        """Send the first call of the outbox."""
        request = self._outbox[0]
        request.id = next(self._ids)
        data = encode_call(Call(request.method, request.params, request.id))
        try:
            self.link.send(data, request.fd)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _GONE:  # this call can't be sent, but others may
                self._withdraw(request)
            raise
        request.sent = True
        self._outbox.popleft().close()
        self._unanswered[request.id] = request
        self._last[request.slot] = request

    def _withdraw(self, request: AgentRequest) -> None:
        request.close()
        if request in self._outbox:
            self._outbox.remove(request)
            self._forget(request)

    def _forget(self, request: AgentRequest) -> None:
        if self._last.get(request.slot) is request:
            del self._last[request.slot]


def _error(request: AgentRequest, number: int, advice: str) -> HostError:
    kind = InDoubtError if request.sent else HostError
    return kind(request.name, OSError(number, ""), advice)


def _request(operation: Operation, file: Fd | None) -> AgentRequest:
    """Return an operation as a call; `file` has the memory of a slot to set. Raises HostError."""
    entry = operation.entry
    fd: Fd | None = None
    match operation:
        case SetSlot(_, address):
            assert file is not None
            params: SlotSet | SlotDelete = SlotSet(
                slot=entry.slot,
                flags=int(entry.flags),
                guest_phys_addr=address,
                memory_size=entry.size,
                fd_offset=entry.backing.offset,
                prot=PROT_READ | PROT_WRITE,
            )
            method, fd = SLOT_SET, duplicate(file)
        case DeleteSlot(_, address):
            params, method = SlotDelete(slot=entry.slot), SLOT_DELETE
    where = f"addr={address:#x} size={entry.size:#x} flags={entry.flags:#x}"
    return AgentRequest(
        entry.slot, method, params.model_dump(), f"{method} slot={entry.slot} {where}", fd
    )
