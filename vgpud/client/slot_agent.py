"""A slot agent: it sets memory slots in a VM for a daemon that runs in another process.

For VMM authors, with blocking calls and without asyncio. The daemon can set only slots of the
numbers, addresses and flags that the VMM grants. Its calls arrive on a `Channel`: the control
socket (`client.Client`), or a socket of the agent's own. The methods are in `control.slot_calls`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self, cast

from pydantic import ValidationError

from vgpud.client.channel import Channel, ConnectedChannel
from vgpud.control.rpc import Call, ErrorCode, Failure, Incoming, Result, RpcError, encode
from vgpud.control.slot_calls import (
    AGENT_ATTACH,
    AGENT_DETACH,
    PROT_READ,
    PROT_WRITE,
    SLOT_DELETE,
    SLOT_SET,
    SlotDelete,
    SlotSet,
    error_data,
)
from vgpud.errors import HostError, PeerError
from vgpud.publish import Json
from vgpud.slots.memslots import Memslots, SlotVm
from vgpud.uapi.memslot import SlotFlag
from vgpud.unix.fd import Fd

NON_COHERENT_DMA: Final = int(SlotFlag.NON_COHERENT_DMA)
"""KVM_MEM_NON_COHERENT_DMA: the flag that a daemon sets where a guest maps blobs WC."""
ATTACH_TIMEOUT: Final = 30.0
"""Seconds. Before it answers, the daemon has the agent set slots, and waits for that."""


class RawVm(Protocol):
    """A VM of this process, by its descriptor from KVM_CREATE_VM."""

    def fileno(self) -> int:
        """Return the descriptor; it stays the owner's."""


class SlotAgent:
    """A server of slot.set and slot.delete for `vm`, a VM of this process.

    `vm` is an object with set_user_memory_region, or a VM's descriptor. `numbers` are the slot
    numbers that the daemon may use, `window` the guest-physical addresses of the BAR that it may
    map (empty while the BAR is not mapped; None is any address), `ram` further ones, `flags` the
    flags that it may set. Instead of a channel, it can be a socket to a daemon that has all this as
    arguments (`vhost-user-vgpu --agent-fd`). Close the agent before the VM: that deletes all slots.
    """

    def __init__(
        self,
        channel: Channel | socket.socket,
        vm: SlotVm | RawVm | int,
        *,
        numbers: range,
        window: range | None = None,
        ram: Sequence[range] = (),
        flags: int = NON_COHERENT_DMA,
    ) -> None:
        self._channel = ConnectedChannel(channel) if isinstance(channel, socket.socket) else channel
        self._slots = Memslots(_slot_vm(vm))
        self._numbers = numbers
        self.window = window
        self._ram = tuple(ram)
        self._flags = flags
        self._device: str | None = None
        self._vm_setup: tuple[str, ...] = ()
        self.live: dict[int, SlotSet] = {}
        """The slots that are set, by number, as they were requested."""
        self._channel.serve(self._answer)

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
        """Detach if attached, delete all slots and close the channel; not while `run` runs."""
        if self._device is not None:
            with suppress(HostError):  # a daemon that is gone has no agent either
                self._channel.notify(AGENT_DETACH, {"device": self._device})
            self._device = None
        self._delete_all()
        self._channel.close()

    def attach(self, device: str, *, vm_setup: Sequence[str] = ()) -> Json:
        """Attach this agent to a device that has `slots = "agent"`; return the daemon's answer.

        The answer is the fields of `control.models.Agent`. `vm_setup` says what was done to the VM
        before its guest ran: "disable-ignore-guest-pat", "non-coherent-vfio". Slots are set before
        this returns: the guest must be paused, or not have mapped the BAR yet. Raises RpcError if
        the daemon refuses, and HostError if it does not answer.
        """
        self._vm_setup = tuple(vm_setup)
        try:
            state = self._attach(device)
        except BaseException:
            self._delete_all()
            raise
        self._device = device
        return state

    def move(self, window: range | None) -> Json:
        """Tell the daemon that the guest has moved the BAR, or with None unmapped it.

        The slots have moved when this returns; the guest must be paused. Raises as `attach`, with
        the slots where they were.
        """
        if self._device is None:
            raise ValueError("the agent is not attached to a device")
        former, self.window = self.window, window or range(0)
        self._ram = (*self._ram, former or range(0))  # while a failure may move them back
        try:
            return self._attach(self._device)
        except BaseException:
            self.window = former
            raise
        finally:
            self._ram = self._ram[:-1]

    def detach(self) -> None:
        """End the daemon's use of this agent, and delete all slots. Raises as `attach`."""
        if self._device is not None:
            self._channel.call(AGENT_DETACH, {"device": self._device}, timeout=ATTACH_TIMEOUT)
            self._device = None
        self._delete_all()

    def run(self) -> None:
        """Serve until `stop` is called or the daemon is gone; then close the agent.

        On a datagram socket of the agent's own, a daemon that is gone is not noticed.
        """
        try:
            self._channel.serve_until_gone()
        except (HostError, PeerError):
            self._device = None

    def stop(self) -> None:
        """Make `run` return, from any thread."""
        self._channel.stop()

    def serve_one(self) -> bool:
        """Wait for one datagram and answer it; return False when there will be no more.

        For VMMs with an event loop of their own: poll the `fileno` of the channel.
        """
        return self._channel.serve_one()

    def _attach(self, device: str) -> Json:
        params: dict[str, Json] = {
            "device": device,
            "guest_phys_addr": self.window.start if self.window else None,
            "first_slot": self._numbers.start,
            "slot_count": len(self._numbers),
            "flags": self._flags,
            "vm_setup": list(self._vm_setup),
        }
        return self._channel.call(AGENT_ATTACH, params, timeout=ATTACH_TIMEOUT)

    def _delete_all(self) -> None:
        self._slots.close()
        self.live.clear()

    def _answer(self, incoming: Incoming, fds: list[Fd]) -> bytes:
        if incoming.batch:
            # It would be ambiguous which call the descriptor belongs to.
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
        if not self._grants(start, params.memory_size):
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

    def _grants(self, start: int, size: int) -> bool:
        return self.window is None or any(
            granted.start <= start <= granted.stop - size for granted in (self.window, *self._ram)
        )

    def _delete(self, params: SlotDelete) -> None:
        if params.slot not in self._slots:
            raise _refused(errno.ENOENT, f"slot {params.slot} is not there")
        self._slots.delete(params.slot)
        self._slots.release(params.slot)
        del self.live[params.slot]


def _slot_vm(vm: SlotVm | RawVm | int) -> SlotVm:
    if not isinstance(vm, int) and hasattr(vm, "set_user_memory_region"):
        return cast("SlotVm", vm)
    # Imported here: a VMM with such an object does not need the rest of KVM's ABI.
    from vgpud.slots.vm import borrowed_vm  # noqa: PLC0415

    return borrowed_vm(vm if isinstance(vm, int) else vm.fileno())


def _refused(number: int, text: str) -> RpcError:
    return RpcError(ErrorCode.VGPUD, text, error_data(number))
