"""A slot agent: sets memory slots in a VM for a vgpud that runs in another process.

For VMM authors: a blocking loop over one socket, no asyncio. Owns the slots that it was asked for,
and what a daemon may ask for: only slots of the numbers, places and flags that the VMM grants. Must
not import `uapi`, nor anything of the daemon's. Source: `wire.slot_calls`.
"""

from __future__ import annotations

import array
import errno
import socket
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError

from vgpud.errors import HostError
from vgpud.host.fds import Fd
from vgpud.host.memslots import Memslots, SlotVm
from vgpud.wire.rpc import Call, ErrorCode, Failure, Json, Result, RpcError, decode, encode
from vgpud.wire.slot_calls import (
    PROT_READ,
    PROT_WRITE,
    SLOT_DELETE,
    SLOT_SET,
    SlotDelete,
    SlotSet,
    error_data,
)

NON_COHERENT_DMA: Final = 8
"""KVM_MEM_NON_COHERENT_DMA: the flag that a daemon asks for where a guest shall map a blob WC."""

_MAX_CALL: Final = 64 << 10
_FD_SIZE: Final = array.array("i").itemsize
_MAX_FDS: Final = 4  # one is right, others are to be seen and closed


class SlotAgent:
    """Serves slot.set and slot.delete from `sock` in `vm`, a VM of this process.

    `numbers` are the slot numbers that the daemon may use, `window` the guest-physical addresses
    that it may fill (the BAR; None is anywhere), `flags` the flags that it may set. Close it before
    the VM; what is still set is deleted then.
    """

    def __init__(
        self,
        sock: socket.socket,
        vm: SlotVm,
        *,
        numbers: range,
        window: range | None = None,
        flags: int = NON_COHERENT_DMA,
    ) -> None:
        self._sock = sock
        self._slots = Memslots(vm)
        self._numbers = numbers
        self.window = window
        self._flags = flags
        self.live: dict[int, SlotSet] = {}
        """The slots that are set, as they were asked for and as KVM took them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete all slots and close the socket; not while `run` runs."""
        self._slots.close()
        self.live.clear()
        self._sock.close()

    def run(self) -> None:
        """Serve until `stop` is called, or (SOCK_SEQPACKET) the daemon has closed its end."""
        while self.serve_one():
            pass

    def stop(self) -> None:
        """Make `run` return, from any thread."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def serve_one(self) -> bool:
        """Wait for one datagram and answer it; False when there will be none any more.

        Never raises for what a daemon sends, or for one that is gone.
        """
        try:
            message, ancillary, message_flags, _ = self._sock.recvmsg(
                _MAX_CALL, socket.CMSG_SPACE(_MAX_FDS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return True  # a datagram socket: the other end may be connected anew
        fds = _descriptors(ancillary)
        try:
            if not message:
                return False
            if message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                cut = RpcError(ErrorCode.INVALID_REQUEST, "the datagram was cut off")
                answer = encode([Failure(None, cut)])
            else:
                answer = self._answer(message, fds)
        finally:
            for fd in fds:
                fd.close()
        if answer:
            try:
                self._sock.send(answer, socket.MSG_NOSIGNAL)
            except OSError:
                # It is gone, or does not read: then it has no answer, and undoes what it asked for.
                return True
        return True

    def _answer(self, message: bytes, fds: list[Fd]) -> bytes:
        incoming = decode(message)
        if incoming.batch:
            # The descriptor would be anyone's.
            error = RpcError(ErrorCode.INVALID_REQUEST, "slot calls come one a datagram")
            return encode([Failure(None, error)])
        replies: list[Result | Failure] = []
        for call in incoming.calls:
            match call:
                case Failure():
                    replies.append(call)
                case Call(notification=notification):
                    reply = self._reply(call, fds)
                    if not notification:
                        replies.append(reply)
        return encode(replies)

    def _reply(self, call: Call, fds: list[Fd]) -> Result | Failure:
        try:
            return Result(call.id, self._call(call, fds))
        except RpcError as error:
            return Failure(call.id, error)
        except ValidationError as error:
            text = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors() if e["loc"])
            return Failure(call.id, RpcError(ErrorCode.INVALID_PARAMS, text or str(error)))
        except HostError as error:
            data = error_data(error.errno or errno.EIO)
            return Failure(call.id, RpcError(ErrorCode.VGPUD, str(error), data))

    def _call(self, call: Call, fds: list[Fd]) -> Json:
        if call.method == SLOT_SET:
            self._set(SlotSet.model_validate(call.params), fds)
        elif call.method == SLOT_DELETE:
            self._delete(SlotDelete.model_validate(call.params))
        else:
            text = f"a slot agent has no method {call.method}"
            raise RpcError(ErrorCode.METHOD_NOT_FOUND, text)
        return {}

    def _set(self, params: SlotSet, fds: list[Fd]) -> None:
        slot, start = params.slot, params.guest_phys_addr
        if len(fds) != 1:
            raise RpcError(ErrorCode.INVALID_PARAMS, f"{len(fds)} descriptors instead of one")
        if params.prot != PROT_READ | PROT_WRITE:
            raise _refused(errno.EPERM, "prot: only memory that is read and written")
        if slot not in self._numbers:
            raise _refused(errno.EPERM, f"slot {slot} is not one of the daemon's {self._numbers}")
        if params.flags & ~self._flags:
            raise _refused(errno.EPERM, f"flags {params.flags:#x} are not all granted")
        window = self.window
        if window is not None and not window.start <= start <= window.stop - params.memory_size:
            raise _refused(errno.EPERM, f"{start:#x} size {params.memory_size:#x} leaves the BAR")
        if slot in self._slots:
            raise _refused(errno.EEXIST, f"slot {slot} is there already")
        self._slots.attach(slot, fds[0], params.fd_offset, params.memory_size)
        try:
            self._slots.set(slot, params.flags, start)
        except BaseException:
            self._slots.release(slot)
            raise
        self.live[slot] = params

    def _delete(self, params: SlotDelete) -> None:
        if params.slot not in self._slots:
            raise _refused(errno.ENOENT, f"slot {params.slot} is not there")
        self._slots.delete(params.slot)
        self._slots.release(params.slot)
        del self.live[params.slot]


def _refused(number: int, text: str) -> RpcError:
    return RpcError(ErrorCode.VGPUD, text, error_data(number))


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[Fd]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return [Fd(fd) for fd in fds]
