"""A device's slots in the VM of a VMM that sets them for us: slot.set and slot.delete.

Owns the socket to the agent and the order of what goes over it: a datagram is a call, with the
memory file attached. Must not import `uapi`. Source: unix(7), `wire.rpc` and `wire.slot_calls`.

Nothing new is asked before everything asked before has been answered. What must be undone is sent
without waiting, ahead of anything new: an agent that was only slow ends up with what our table has.
"""

from __future__ import annotations

import array
import asyncio
import errno
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vgpud.errors import HostError, PeerError
from vgpud.host.fds import Fd
from vgpud.policy.slot_entries import Entry, Slot
from vgpud.policy.slots import DeleteSlot, Operation, PutInlay, RemoveInlay, SetSlot, SlotTable
from vgpud.serve.table_slots import InDoubtError, TableSlots
from vgpud.wire.rpc import Call, Failure, Json, Result, decode_reply, encode_call
from vgpud.wire.slot_calls import (
    PROT_READ,
    PROT_WRITE,
    SLOT_DELETE,
    SLOT_SET,
    SlotDelete,
    SlotSet,
    errno_of,
)

_log = logging.getLogger(__name__)

PATIENCE: Final = 10.0
"""Seconds that an agent may take to answer: far more than any slot takes, and less than a guest's
driver waits before it calls its device dead."""

_MAX_REPLY: Final = 64 << 10
_GONE: Final = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}


@dataclass(slots=True, eq=False)
class _Request:
    id: int
    name: str
    data: bytes
    fd: Fd | None
    sent: bool = False

    def close(self) -> None:
        if self.fd is not None:
            self.fd.close()


class AgentSlots(TableSlots):
    """Slots that the agent at the other end of `sock` sets: AF_UNIX, connected, with message
    boundaries (SOCK_DGRAM or SOCK_SEQPACKET).

    One that answers with an error, or not at all within `patience` seconds, makes it a HostError.
    While an answer is overdue nothing new is asked, and everything fails at once.
    """

    def __init__(
        self, sock: socket.socket, table: SlotTable, *, patience: float = PATIENCE
    ) -> None:
        if table.takes_inlays:
            raise ValueError("an agent has no call to put a file into a live slot")
        super().__init__(table)
        sock.setblocking(False)
        self._sock = sock
        self._patience = patience
        self._ids = itertools.count(1)
        self._files: dict[Slot, Fd] = {}
        self._outbox: deque[_Request] = deque()
        self._unanswered: dict[int, _Request] = {}
        self._overdue = False

    def close(self) -> None:
        """Close the socket and the files; what the VM has then is the VMM's affair."""
        self._drop_all()
        for fd in self._files.values():
            fd.close()
        self._files.clear()
        self._sock.close()

    def _hold(self, entry: Entry, fd: Fd) -> None:
        self._files[entry.slot] = _dup(fd)

    def _release(self, entry: Entry) -> None:
        self._files.pop(entry.slot).close()

    async def _do(self, operation: Operation, fd: Fd | None) -> None:
        request = self._request(operation)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(0 if self._overdue else self._patience) as limit:
                await self._settle()
                self._overdue = False
                limit.reschedule(loop.time() + self._patience)
                self._outbox.append(request)
                reply = await self._settle(request)
        except TimeoutError:
            self._overdue = True
            late = "" if request.sent else " what it was asked before"
            advice = f"the VMM's slot agent has not answered{late}; is it still running?"
            raise _error(request, errno.ETIMEDOUT, advice) from None
        except PeerError as error:
            raise _error(request, errno.EPROTO, f"the VMM's slot agent: {error}") from error
        except OSError as error:
            advice = "the VMM's slot agent is gone" if error.errno in _GONE else ""
            raise _error(request, error.errno or errno.EIO, advice) from error
        finally:
            if not request.sent:
                self._withdraw(request)
        if isinstance(reply, Failure):
            number = errno_of(reply.error) or errno.EREMOTEIO
            if number == errno.ENOENT and isinstance(operation, DeleteSlot):
                return  # it is not there: as it should be
            advice = f"the VMM's slot agent says: {reply.error}"
            raise HostError(request.name, OSError(number, ""), advice)

    def _undo(self, operations: Sequence[Operation]) -> None:
        try:
            for operation in operations:
                self._outbox.append(self._request(operation))
            while self._outbox:
                self._send_first()
        except BlockingIOError:
            pass  # the next operation sends the rest
        except (HostError, OSError) as error:
            _log.warning("slots not restored by the agent error=%s", error)

    def _left_behind(self, entry: Entry, error: HostError) -> None:
        _log.warning("slot not yet deleted by the agent slot=%d error=%s", entry.slot, error)
        change = self.table.remove(entry.offset, entry.size, entry.use)
        self._undo(change.operations)
        self.table.commit(change)
        self._release(entry)

    def _request(self, operation: Operation) -> _Request:
        entry = operation.entry
        fd: Fd | None = None
        match operation:
            case SetSlot(_, address):
                params: SlotSet | SlotDelete = SlotSet(
                    slot=entry.slot,
                    flags=int(entry.flags),
                    guest_phys_addr=address,
                    memory_size=entry.size,
                    fd_offset=entry.backing.offset,
                    prot=PROT_READ | PROT_WRITE,
                )
                method, fd = SLOT_SET, _dup(self._files[entry.slot])
            case DeleteSlot():
                params, method = SlotDelete(slot=entry.slot), SLOT_DELETE
            case PutInlay() | RemoveInlay():
                raise AssertionError("a table without inlays")
        values: dict[str, Json] = params.model_dump()
        number = next(self._ids)
        data = encode_call(Call(method, values, number))
        where = f" addr={operation.guest_phys_addr:#x} size={entry.size:#x} flags={entry.flags:#x}"
        return _Request(number, f"{method} slot={entry.slot}{where}", data, fd)

    async def _settle(self, last: _Request | None = None) -> Result | Failure | None:
        """Send all that is to be sent, and wait until all is answered; the answer to `last`."""
        answer = None
        while self._outbox:
            try:
                self._send_first()
            except BlockingIOError:
                await self._writable()
        loop = asyncio.get_running_loop()
        while self._unanswered:
            data = await loop.sock_recv(self._sock, _MAX_REPLY)
            if not data:
                self._drop_all()
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            reply = decode_reply(data)
            request = self._unanswered.pop(reply.id, None) if isinstance(reply.id, int) else None
            if request is last:
                answer = reply
            elif request is not None and isinstance(reply, Failure):
                _log.info("late answer of the agent call=%s error=%s", request.name, reply.error)
        return answer

    def _send_first(self) -> None:
        """Send the first of the outbox; what can't be sent at all is taken out of it."""
        request = self._outbox[0]
        ancillary = []
        if request.fd is not None:
            rights = array.array("i", [request.fd.fileno()])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        try:
            self._sock.sendmsg([request.data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _GONE:
                self._drop_all()
            else:
                self._withdraw(request)
            raise
        request.sent = True
        self._outbox.popleft().close()
        self._unanswered[request.id] = request

    def _withdraw(self, request: _Request) -> None:
        request.close()
        if request in self._outbox:
            self._outbox.remove(request)

    def _drop_all(self) -> None:
        """There is nobody any more who could do or answer anything."""
        for request in self._outbox:
            request.close()
        self._outbox.clear()
        self._unanswered.clear()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self._sock, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _dup(fd: Fd) -> Fd:
    try:
        return fd.dup()
    except OSError as error:
        advice = "raise the limit of open files (LimitNOFILE= of the service, ulimit -n)"
        raise HostError("dup of a slot's file", error, advice) from error


def _error(request: _Request, number: int, advice: str) -> HostError:
    kind = InDoubtError if request.sent else HostError
    return kind(request.name, OSError(number, ""), advice)
