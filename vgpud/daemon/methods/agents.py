"""agent.attach and agent.detach: a client becomes a device's slot agent, over its own socket."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.agent_calls import AgentCalls
from vgpud.control.agent_link import ControlLink, ControlPort
from vgpud.control.call import Caller, Handler, refused
from vgpud.control.models import Agent, Detached, ErrorKind
from vgpud.control.params import AttachAgent, OfDevice
from vgpud.control.slot_calls import AGENT_ATTACH, AGENT_DETACH
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.lookup import device_named
from vgpud.memory.addresses import Gpa
from vgpud.slots.agent import AgentSlots, AttachedAgent, Grant


class AgentMethods:
    """The methods about agents; `devices` may change meanwhile, `port` reaches the agents."""

    def __init__(self, devices: Mapping[str, DeviceServer], port: ControlPort) -> None:
        self._devices = devices
        self._port = port
        # A socket can be an agent's several times, and must not get a call id twice.
        self._call_ids = count(1)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {AGENT_ATTACH: self._attach, AGENT_DETACH: self._detach}

    async def _attach(self, params: AttachAgent, caller: Caller) -> Agent:
        device, slots = self._find(params.device)
        if not caller.address:
            text = "an agent is called back: bind the socket that you call from to an address"
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        grant = Grant(
            numbers=range(params.first_slot, params.first_slot + params.slot_count),
            base=None if params.guest_phys_addr is None else Gpa(params.guest_phys_addr),
            flags=params.flags,
            vm_setup=params.vm_setup,
            pid=caller.pid or None,
            uid=caller.uid,
        )
        present = _owner(slots)
        self._check_others(params.device, caller)
        if present == caller:
            await slots.change(grant)
        else:
            if present is not None and _same_process(present, caller):
                slots.lost("its VMM has attached another")
            slots.check_agent()
            if slots.connection is not None:
                held = slots.grant.pid if slots.grant is not None else None
                text = f"pid {held} is the slot agent of {params.device}: it has to detach first"
                raise refused(ErrorKind.BUSY, text, device=params.device, pid=held)
            link = ControlLink(self._port, caller, params.device, slots.lost)
            await slots.attach(AgentCalls(link, self._call_ids), grant)
        device.find_kvm_mode_again()
        attached = slots.attached()
        if attached is None:
            raise refused(ErrorKind.NO_AGENT, f"the agent of {params.device} is gone again")
        return describe(params.device, attached)

    def _detach(self, params: OfDevice, caller: Caller) -> Detached:
        _, slots = self._find(params.device)
        if slots.connection is None or slots.grant is None:
            raise refused(ErrorKind.NO_AGENT, f"no agent is attached to {params.device}")
        if _owner(slots) != caller:
            text = f"pid {slots.grant.pid} is the slot agent of {params.device}: it has to detach"
            raise refused(ErrorKind.BUSY, text, device=params.device, pid=slots.grant.pid)
        return Detached(device=params.device, slots=slots.detach())

    def _check_others(self, name: str, caller: Caller) -> None:
        for other, device in self._devices.items():
            if other == name or device.agent is None:
                continue
            owner = _owner(device.agent)
            if owner is not None and _same_socket(owner, caller):
                # Neither slot calls nor their answers say which device they are for.
                text = f"this socket is the agent of {other} already: call from one for each device"
                raise refused(ErrorKind.NOT_POSSIBLE, text, device=name)

    def _find(self, name: str) -> tuple[DeviceServer, AgentSlots]:
        device = device_named(self._devices, name)
        if device.agent is None:
            owner = device.spec.slots
            text = f'{name} has slots = "{owner}": its configuration has to say slots = "agent"'
            if owner is SlotOwner.AGENT:
                text = f'{name} has slots = "agent" from the next connection of its front-end on'
            raise refused(ErrorKind.NOT_POSSIBLE, text, device=name)
        return device, device.agent


def describe(device: str, agent: AttachedAgent) -> Agent:
    """Return the description of a device's agent for clients."""
    grant = agent.grant
    return Agent(
        device=device,
        pid=grant.pid,
        uid=grant.uid,
        guest_phys_addr=grant.base,
        first_slot=grant.numbers.start,
        slot_count=len(grant.numbers),
        flags=grant.flags,
        flag_accepted=agent.flag_accepted,
        vm_setup=grant.vm_setup,
        kvm_mode=agent.finding.mode,
        reason=agent.finding.reason,
    )


def _owner(slots: AgentSlots) -> Caller | None:
    agent = slots.connection
    if isinstance(agent, AgentCalls) and isinstance(agent.link, ControlLink):
        return agent.link.caller
    return None


def _same_socket(one: Caller, other: Caller) -> bool:
    return (one.address, one.uid) == (other.address, other.uid)


def _same_process(one: Caller, other: Caller) -> bool:
    return (one.pid, one.uid) == (other.pid, other.uid) and one.pid != 0
