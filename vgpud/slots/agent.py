"""A device's slots in the VM of a VMM that sets them for us: slot.set and slot.delete.

Owns which agent is attached, what it grants, and the files of the slots, which outlive it: what an
agent leaves behind is set again by the next one. How it is asked is up to its `AgentConnection`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from vgpud.coherency import kvm_mode
from vgpud.coherency.kvm_mode import Finding, KvmMode
from vgpud.coherency.plan import VmSetup
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.addresses import Gpa
from vgpud.publish import Json, Publish
from vgpud.rate_limit import RateLimit
from vgpud.slots.agent_connection import AgentConnection
from vgpud.slots.entries import Entry, Slot, SlotBacking, SlotUse
from vgpud.slots.errors import AgentGoneError, AgentRefusedError
from vgpud.slots.owner import TrackedSlots
from vgpud.slots.slot_mapping import duplicate
from vgpud.slots.table import GPA_LIMIT, Change, DeleteSlot, Operation, SetSlot, SlotTable
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)

_NO_SLOTS: Final = range(0)
_SOCKET: Final = "its socket is closed"


@dataclass(frozen=True, slots=True)
class Grant:
    """What an agent offers: slots of these `numbers`, with no flags but these.

    `base` is where the guest has the BAR, None while it is nowhere. `pid` and `uid` are whose it
    is, None where that is not known.
    """

    numbers: range
    base: Gpa | None
    flags: int = int(SlotFlag.NON_COHERENT_DMA)
    vm_setup: tuple[VmSetup, ...] = ()
    pid: int | None = None
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class AttachedAgent:
    """The agent of a device: what it offers, and what is known of its VM.

    `flag_accepted` is None where no slot with KVM_MEM_NON_COHERENT_DMA was tried.
    """

    grant: Grant
    flag_accepted: bool | None
    finding: Finding


class AgentSlots(TrackedSlots):
    """Slots that the agent which is attached sets; without one, nothing can be mapped.

    One that answers with an error, or not in time, makes it a HostError. `flag_accepted` is what
    came of the first slot with KVM_MEM_NON_COHERENT_DMA in the agent's VM.
    """

    def __init__(
        self,
        device: str,
        publish: Publish,
        *,
        allow_guest_ram: bool = False,
    ) -> None:
        super().__init__(SlotTable(_NO_SLOTS, allow_guest_ram=allow_guest_ram))
        self.report_to(publish, device)
        self.grant: Grant | None = None
        self.flag_accepted: bool | None = None
        self._allow_guest_ram = allow_guest_ram
        self._agent: AgentConnection | None = None
        self._coming: AgentConnection | None = None
        self._files: dict[tuple[SlotUse, int], Fd] = {}
        self._last = ""
        self._closed = False
        self._found: tuple[object, Finding] | None = None
        self._limit = RateLimit()

    # Who is attached

    @property
    def connection(self) -> AgentConnection | None:
        """The connection to the agent that is attached, or about to be."""
        return self._agent if self._agent is not None else self._coming

    def connect(self, agent: AgentConnection, grant: Grant) -> None:
        """Take an agent of which nothing is asked yet; there must have been none."""
        if self.connection is not None or len(self.table):
            raise ValueError("an agent is attached, or was")
        self.table = self._rebuilt(grant)[0]
        self._agent, self.grant = agent, grant

    async def attach(self, agent: AgentConnection, grant: Grant) -> None:
        """Take an agent; there must be none. What the one before it left is set again.

        Tries a flagged slot first, if the agent grants the flag and the guest has the BAR. Raises
        HostError if the agent does not do what it offers: then there is none. A connection that is
        not taken is closed.
        """
        if self.connection is not None:
            raise ValueError("an agent is attached")
        self._coming = agent
        try:
            async with self._lock:
                if self._closed:  # while we waited
                    advice = f"{self._device} is gone, or its slots are no agent's any more"
                    raise HostError("attaching an agent", OSError(errno.ENODEV, ""), advice)
                table, operations = self._rebuilt(grant)
                self._agent, self.grant = agent, grant
                await self._try_flag(grant)
                await self._perform(Change(operations))
                self._replace(table, operations)
        except BaseException:
            if self._agent is agent:
                self._drop("the last one could not be attached")
            agent.close()
            raise
        finally:
            self._coming = None
        _log.info("agent attached device=%s pid=%s kept=%d", self._device, grant.pid, len(table))
        self._publish_agent("agent.attached", "a slot agent is attached", grant)

    async def change(self, grant: Grant) -> None:
        """Take what the attached agent offers now, or where the BAR has moved.

        Raises HostError, and everything is where it was then.
        """
        async with self._lock:
            former = self._attached("changing what the agent grants")
            if not any(address is not None for _, address in self.entries()):
                await self._try_flag(grant)
            if grant.numbers == former.numbers:
                change = self.table.move(grant.base)
                await self._perform(change)
                self._commit(change)
            else:
                table, sets = self._rebuilt(grant)
                live = [(entry, at) for entry, at in self.entries() if at is not None]
                operations = (*(DeleteSlot(entry, at) for entry, at in live), *sets)
                await self._perform(Change(operations))
                self._replace(table, operations)
            self._attached("changing what the agent grants")  # it may be gone, and its slots too
            self.grant = grant
        if former.base != grant.base:
            where = "nowhere" if grant.base is None else f"at {grant.base:#x}"
            self._publish_agent("agent.moved", f"the BAR is {where}", grant)

    async def move(self, base: Gpa | None) -> None:
        """Have all slots follow the BAR, which the guest has moved, or with None unmapped."""
        await self.change(replace(self._attached("moving the BAR"), base=base))

    def detach(self) -> tuple[int, ...]:
        """Let go of the agent, and return the slots that it had set; what it is being asked at the
        moment fails."""
        grant = self._attached("detaching the agent")
        slots = tuple(int(entry.slot) for entry, at in self.entries() if at is not None)
        self._drop("the last one has detached")
        _log.info("agent detached device=%s pid=%s", self._device, grant.pid)
        self._publish_agent(
            "agent.detached", "the slot agent has detached", grant, slots=list(slots)
        )
        return slots

    def lost(self, reason: str) -> None:
        """Let go of the agent, which is gone; what it is being asked at the moment fails.

        Does nothing if none was attached.
        """
        grant = self.grant
        if self._agent is None or grant is None:
            return
        self._drop(f"the last one is gone, {reason}")
        _log.warning("agent lost device=%s pid=%s: %s", self._device, grant.pid, reason)
        self._publish_agent("agent.lost", f"the slot agent is gone: {reason}", grant)

    def notice(self) -> None:
        """Notice now if the agent's socket is not there any more."""
        if self._agent is not None:
            try:
                self._agent.check()
            except AgentGoneError:
                self.lost(_SOCKET)

    def close(self) -> None:
        """Let go of the agent and the files; what the VM has then is the VMM's affair."""
        grant, self._closed = self.grant, True
        if self._agent is not None and grant is not None:
            self._drop("the device is gone")
            self._publish_agent("agent.detached", "the device has no slot agent any more", grant)
        for fd in self._files.values():
            fd.close()
        self._files.clear()

    def _drop(self, last: str) -> None:
        agent, self._agent = self._agent, None
        self.grant = self.flag_accepted = self._found = None
        self._last = last
        self.table.base = None  # the entries wait for the next agent
        assert agent is not None
        agent.close()

    def _attached(self, operation: str) -> Grant:
        if self._agent is None or self.grant is None:
            last = f" ({self._last})" if self._last else ""
            advice = (
                f"no agent is attached to {self._device}{last}: its VMM is to call agent.attach"
            )
            raise HostError(operation, OSError(errno.ENOTCONN, ""), advice)
        return self.grant

    def _rebuilt(self, grant: Grant) -> tuple[SlotTable, tuple[Operation, ...]]:
        """The table as another agent would have it, and what it takes to set all that is in it."""
        base = grant.base
        if base is not None and (base % PAGE_SIZE or not 0 <= base < GPA_LIMIT):
            advice = "no address that a page can have"
            raise HostError(f"a BAR at {base:#x}", OSError(errno.EINVAL, ""), advice)
        table = SlotTable(grant.numbers, base=base, allow_guest_ram=self._allow_guest_ram)
        operations: list[Operation] = []
        for entry in self.table:
            change = table.add(entry.offset, entry.size, int(entry.flags), entry.backing, entry.use)
            table.commit(change)
            operations += change.operations
        return table, tuple(operations)

    def _replace(self, table: SlotTable, operations: Sequence[Operation]) -> None:
        self.table = table
        self._announce(operations)

    async def _try_flag(self, grant: Grant) -> None:
        """Find out whether the agent's VM takes KVM_MEM_NON_COHERENT_DMA, by a page of its own."""
        flag = SlotFlag.NON_COHERENT_DMA
        if self.flag_accepted is not None or grant.base is None or not grant.flags & flag:
            return
        slot = Slot(grant.numbers.start)
        entry = Entry(slot, SlotUse.BAR, 0, PAGE_SIZE, flag, SlotBacking(0, 0, 0))
        setting = SetSlot(entry, grant.base)
        with memfd.create(f"{self._device}-flag-trial", PAGE_SIZE) as page:
            try:
                await self._ask(setting, page)
            except AgentRefusedError as error:
                self.flag_accepted = False
                self._refused(setting, error)
                return
            except BaseException:
                self._undo([DeleteSlot(entry, grant.base)])
                raise
        self.flag_accepted = True
        await self._ask(DeleteSlot(entry, grant.base), None)

    # What is known of its VM

    def finding(self) -> Finding:
        """Return what decides the guest's memory types in the agent's VM."""
        if self.grant is None:
            return Finding(KvmMode.UNKNOWN, "no slot agent is attached")
        flag, setup = key = self.flag_accepted, self.grant.vm_setup
        if self._found is None or self._found[0] != key:  # a probe takes milliseconds
            seen = kvm_mode.of_agent(probe_kvm.probe(), flag_accepted=flag, vm_setup=setup)
            self._found = key, seen
        return self._found[1]

    def attached(self) -> AttachedAgent | None:
        """Return the agent that is attached."""
        if self.grant is None:
            return None
        return AttachedAgent(self.grant, self.flag_accepted, self.finding())

    # What a table asks of the VM's owner

    def _check(self, operation: str) -> None:
        self._attached(operation)

    def _hold(self, entry: Entry, fd: Fd) -> None:
        self._files[entry.use, entry.offset] = duplicate(fd)

    def _release(self, entry: Entry) -> None:
        fd = self._files.pop((entry.use, entry.offset), None)
        if fd is not None:  # else `close` was quicker
            fd.close()

    async def _do(self, operation: Operation) -> None:
        entry = operation.entry
        if isinstance(operation, DeleteSlot):
            if self._agent is not None:
                with suppress(AgentGoneError):  # then the slot has gone with it
                    await self._ask(operation, None)
            return
        self._attached(f"slot.set slot={entry.slot}")
        flagged = self.flag_accepted is None and entry.non_coherent
        try:
            await self._ask(operation, self._files[entry.use, entry.offset])
        except AgentRefusedError as error:
            if flagged and error.errno == errno.EINVAL:
                self.flag_accepted = False
            raise
        if flagged:
            self.flag_accepted = True

    async def _ask(self, operation: Operation, file: Fd | None) -> None:
        agent = self._agent
        assert agent is not None
        try:
            await agent.ask(operation, file)
        except AgentGoneError:
            if self._agent is agent:
                self.lost(_SOCKET)
            raise
        except AgentRefusedError as error:
            # A slot that is to be deleted and is not there is as it should be.
            if error.errno != errno.ENOENT or not isinstance(operation, DeleteSlot):
                raise

    def _undo(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if self._agent is None:
                return  # there is nothing to undo any more
            entry = operation.entry
            try:
                self._agent.post(operation, self._files.get((entry.use, entry.offset)))
            except AgentGoneError:
                self.lost(_SOCKET)
            except HostError as error:  # and the rest is undone all the same
                text = "slot not restored by the agent device=%s slot=%d: %s"
                _log.warning(text, self._device, entry.slot, error)

    def _left_behind(self, entry: Entry, error: HostError) -> None:
        _log.warning(
            "slot not yet deleted by the agent device=%s slot=%d: %s",
            self._device,
            entry.slot,
            error,
        )
        change = self.table.remove(entry.offset, entry.size, entry.use)
        self._undo(change.operations)
        self._commit(change)
        self._release(entry)

    def _refused(self, operation: Operation, error: HostError) -> None:
        super()._refused(operation, error)
        if self._limit.allows():
            suffix = self._limit.suffix()
            _log.warning("slot refused device=%s: %s%s", self._device, error, suffix)

    def _publish_agent(self, kind: str, message: str, grant: Grant, **data: Json) -> None:
        self._publish(
            kind,
            message,
            pid=grant.pid,
            uid=grant.uid,
            guest_phys_addr=grant.base,
            flags=grant.flags,
            flag_accepted=self.flag_accepted,
            **data,
        )
