"""A device's slots that an agent in the VMM sets: slot.set and slot.delete.

The slots and their files outlive the agent: the next agent sets them again. Requests to the agent
go through its `AgentConnection`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
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
from vgpud.pace import Pace, paced
from vgpud.publish import Json, Publish
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
UNDOS_PER_SLOT: Final = 2
"""Operations on each slot that undo the last change of all slots: each was deleted and set."""
FEW_UNDOS: Final = 16
"""Operations without an answer besides those: of maps that were given up before."""

_SOCKET: Final = "its socket is closed"


@dataclass(frozen=True, slots=True)
class Grant:
    """What an agent offers: slots of these `numbers`, with these `flags` at most.

    `base` is the guest-physical address of the BAR, None while it is not mapped. `pid` and `uid`
    are the agent's, None if not known.
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

    `flag_accepted` is None if no slot with KVM_MEM_NON_COHERENT_DMA was tried.
    """

    grant: Grant
    flag_accepted: bool | None
    finding: Finding


class AgentSlots(TrackedSlots):
    """Slots that the attached agent sets; without an agent, nothing can be mapped.

    Operations raise HostError if the agent answers with an error, or not in time. `flag_accepted`
    is whether the agent's VM has taken a slot with KVM_MEM_NON_COHERENT_DMA, None before a try.
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
        self._attaching: AgentConnection | None = None
        self._files: dict[tuple[SlotUse, int], Fd] = {}
        self._last_end = ""
        self._closed = False
        self._found: tuple[object, Finding] | None = None

    # Attaching and detaching

    @property
    def connection(self) -> AgentConnection | None:
        """The connection to the agent that is attached or being attached."""
        return self._agent if self._agent is not None else self._attaching

    def connect(self, agent: AgentConnection, grant: Grant) -> None:
        """Attach the first agent, without a request to it.

        Raises ValueError if there is or was one.
        """
        if self.connection is not None or len(self.table):
            raise ValueError("an agent is attached, or was")
        self.table = self._table(grant)
        self._agent, self.grant = agent, grant

    async def attach(self, agent: AgentConnection, grant: Grant) -> None:
        """Attach an agent, and have it set the slots that its predecessor had.

        A flagged slot is tried first, if the agent grants the flag and the guest has the BAR
        mapped. Raises HostError if the agent does not do what it offers: then none is attached, and
        the connection is closed. Raises ValueError if another one is attached.
        """
        if self.connection is not None:
            raise ValueError("an agent is attached")
        self._attaching = agent
        try:
            async with self._lock:
                if self._closed:  # while this waited for the lock
                    advice = f"{self._device} is gone, or has no slot agent any more"
                    raise HostError("attaching an agent", OSError(errno.ENODEV, ""), advice)
                table, operations = await self._rebuilt(grant)
                self._agent, self.grant = agent, grant
                await self._try_flag(grant)
                await self._perform(Change(operations))
                self.table = table
                await self._announce_all(operations)
        except BaseException:
            if self._agent is agent:
                self._drop("the last one could not be attached")
            agent.close()
            raise
        finally:
            self._attaching = None
        _log.info("agent attached device=%s pid=%s kept=%d", self._device, grant.pid, len(table))
        self._publish_agent("agent.attached", "a slot agent is attached", grant)

    async def change(self, grant: Grant) -> None:
        """Adopt a changed offer of the attached agent, or a new address of the BAR.

        Raises HostError, and all slots stay where they were.
        """
        async with self._lock:
            former = self._attached("changing what the agent grants")
            if next(self._set_entries(), None) is None:
                await self._try_flag(grant)
            if grant.numbers == former.numbers:
                change = await paced(self.table.move_steps(grant.base))
                operations = change.operations
                await self._perform(change)
                self.table.commit(change)
            else:
                table, sets = await self._rebuilt(grant)
                deletes, pace = list[Operation](), Pace()
                for entry, address in self._set_entries():
                    deletes.append(DeleteSlot(entry, address))
                    await pace.step()
                operations = (*deletes, *sets)
                await self._perform(Change(operations))
                self.table = table
            self._attached("changing what the agent grants")  # it may be gone by now
            self.grant = grant
            await self._announce_all(operations)
        if former.base != grant.base:
            where = "not mapped" if grant.base is None else f"at {grant.base:#x}"
            self._publish_agent("agent.moved", f"the BAR is {where}", grant)

    async def move(self, base: Gpa | None) -> None:
        """Move all slots to a new address of the BAR; None if the guest has unmapped it."""
        await self.change(replace(self._attached("moving the BAR"), base=base))

    def detach(self) -> tuple[int, ...]:
        """Detach the agent and return the slots that it had set; pending requests to it fail."""
        grant = self._attached("detaching the agent")
        slots = tuple(int(entry.slot) for entry, _ in self._set_entries())
        self._drop("the last one has detached")
        _log.info("agent detached device=%s pid=%s", self._device, grant.pid)
        self._publish_agent(
            "agent.detached", "the slot agent has detached", grant, slots=list(slots)
        )
        return slots

    def lost(self, reason: str) -> None:
        """Detach the agent because it is gone; pending requests to it fail.

        Does nothing if none is attached.
        """
        grant = self.grant
        if self._agent is None or grant is None:
            return
        self._drop(f"the last one is gone, {reason}")
        _log.warning("agent lost device=%s pid=%s: %s", self._device, grant.pid, reason)
        self._publish_agent("agent.lost", f"the slot agent is gone: {reason}", grant)

    def check_agent(self) -> None:
        """Detach the agent if its socket is closed."""
        if self._agent is not None:
            try:
                self._agent.check()
            except AgentGoneError:
                self.lost(_SOCKET)

    def close(self) -> None:
        """Detach the agent and close the files; the VM's slots stay as they are."""
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
        self._last_end = last
        self.table.base = None  # the entries stay for the next agent
        assert agent is not None
        agent.close()

    def _attached(self, operation: str) -> Grant:
        if self._agent is None or self.grant is None:
            last = f" ({self._last_end})" if self._last_end else ""
            advice = f"no agent is attached to {self._device}{last}: the VMM must call agent.attach"
            raise HostError(operation, OSError(errno.ENOTCONN, ""), advice)
        return self.grant

    def _set_entries(self) -> Iterator[tuple[Entry, Gpa]]:
        """Yield the slots that are set in the VM, with their addresses."""
        for entry in self.table:
            address = self.table.address(entry)
            if address is not None:
                yield entry, address

    def _table(self, grant: Grant) -> SlotTable:
        base = grant.base
        if base is not None and (base % PAGE_SIZE or not 0 <= base < GPA_LIMIT):
            advice = "it must be page-aligned and below 2**52"
            raise HostError(f"a BAR at {base:#x}", OSError(errno.EINVAL, ""), advice)
        return SlotTable(grant.numbers, base=base, allow_guest_ram=self._allow_guest_ram)

    async def _rebuilt(self, grant: Grant) -> tuple[SlotTable, tuple[Operation, ...]]:
        """Return a table of the same slots by another grant, and the operations that set them."""
        table = self._table(grant)
        operations: list[Operation] = []
        pace = Pace()
        for entry in self.table:  # which changes with the lock only
            change = table.add(entry.offset, entry.size, int(entry.flags), entry.backing, entry.use)
            table.commit(change)
            operations += change.operations
            await pace.step()
        return table, tuple(operations)

    async def _try_flag(self, grant: Grant) -> None:
        """Find out whether the agent's VM takes KVM_MEM_NON_COHERENT_DMA, with a scratch page."""
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

    # Facts about its VM

    def finding(self) -> Finding:
        """Return whether the agent's VM honours the guest's PAT, as far as known."""
        if self.grant is None:
            return Finding(KvmMode.UNKNOWN, "no slot agent is attached")
        flag, setup = key = self.flag_accepted, self.grant.vm_setup
        if self._found is None or self._found[0] != key:  # a probe takes milliseconds
            seen = kvm_mode.of_agent(probe_kvm.probe(), flag_accepted=flag, vm_setup=setup)
            self._found = key, seen
        return self._found[1]

    def attached(self) -> AttachedAgent | None:
        """Return the agent that is attached, or None."""
        if self.grant is None:
            return None
        return AttachedAgent(self.grant, self.flag_accepted, self.finding())

    # Operations of TrackedSlots

    def _check(self, operation: str) -> None:
        self._attached(operation)

    def _hold(self, entry: Entry, fd: Fd) -> None:
        self._files[entry.use, entry.offset] = duplicate(fd)

    def _release(self, entry: Entry) -> None:
        fd = self._files.pop((entry.use, entry.offset), None)
        if fd is not None:  # None after `close`
            fd.close()

    async def _do(self, operation: Operation) -> None:
        entry = operation.entry
        if isinstance(operation, DeleteSlot):
            if self._agent is not None:
                with suppress(AgentGoneError):  # the slot is gone with the agent
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
            # Deleting a slot that does not exist is a success.
            if error.errno != errno.ENOENT or not isinstance(operation, DeleteSlot):
                raise

    def _undo(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if self._agent is None or self.grant is None:
                return  # nothing can be undone any more
            if self._agent.unanswered > UNDOS_PER_SLOT * len(self.grant.numbers) + FEW_UNDOS:
                self.lost(f"it has not answered {self._agent.unanswered} calls")
                return
            entry = operation.entry
            try:
                self._agent.post(operation, self._files.get((entry.use, entry.offset)))
            except AgentGoneError:
                self.lost(_SOCKET)
            except HostError as error:  # the others are undone all the same
                text = "slot not restored by the agent device=%s slot=%d: %s"
                _log.warning(text, self._device, entry.slot, error)

    def _delete_failed(self, entry: Entry, error: HostError) -> None:
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
        _log.warning("slot refused device=%s: %s", self._device, str(error))

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
