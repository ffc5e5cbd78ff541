"""The server of one device: it accepts a front-end, serves its session, and waits for the next.

It keeps the state of a device that outlives sessions. A session's failure is logged here, once; the
daemon and its other devices continue.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from time import monotonic
from typing import Final

from vgpud.coherency import kvm_mode
from vgpud.coherency.kvm_mode import Finding, KvmMode
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.events import Events
from vgpud.daemon.process_examiner import ProcessExaminer
from vgpud.errors import VgpudError
from vgpud.gpu.blobs.buffers import BlobBuffers, resolve
from vgpud.gpu.blobs.vmm_blobs import BlobIds
from vgpud.gpu.compose import compose
from vgpud.gpu.counters import Counters
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.environment import Environment
from vgpud.gpu.spec import DeviceSpec
from vgpud.memory.render_nodes import RenderNodes
from vgpud.publish import Json
from vgpud.slots.agent import AgentSlots
from vgpud.slots.owner import TrackedSlots
from vgpud.unix.credentials import peer_credentials
from vgpud.unix.file_names import shown
from vgpud.unix.received_fd import close_socket
from vgpud.unix.refusals import MAX_CLOSING, Refusals
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.session import Session

log = logging.getLogger(__name__)

FRESH: Final = 1.0
"""Seconds for which it counts what KVM can do. Trying it makes two VMs, and a guest can start its
driver again and again."""

ACCEPT_RETRY = 1.0
"""Seconds until the next try if a connection can't be accepted, for example without descriptors."""

CHANGEOVER = 2.0
"""Seconds that a new front-end waits for the former session to end, which takes milliseconds."""


class DeviceServer:
    """A device to which front-ends can connect, or with which one is connected already.

    The specification says who sets its memory slots; with slots of an agent, `agent` is where the
    agent attaches. `slots` overrides that, and stays the caller's to close. `nodes` are the host's
    GPUs.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        *,
        events: Events,
        slots: TrackedSlots | None = None,
        nodes: RenderNodes | None = None,
    ) -> None:
        self.spec = spec
        self.counters = Counters()
        if slots is not None:
            slots.report_to(self._publish, spec.name)
        self.agent: AgentSlots | None = None
        self.live: GpuDevice | None = None
        """The device of the present session; None while no front-end is connected."""
        self.finding: Finding | None = None
        """What decides the guest's memory types, as last probed; None before the first probe."""
        self.socket: str | None = None
        """Where front-ends connect; None before `serve`, and for a device that has no listener."""
        self._blob_ids = BlobIds()
        self._events = events
        self._slots = self._given = slots
        self._nodes = nodes if nodes is not None else RenderNodes()
        self._free = asyncio.Event()
        self._free.set()
        self._pid = 0
        self._process = ProcessExaminer(self.find_kvm_mode_again)
        self._kvm: KvmFacts | None = None  # as tried for the present driver or a former one
        self._kvm_until = 0.0  # when it is tried again for another driver
        self._choose_slots()

    @property
    def name(self) -> str:
        """The device's name in the configuration."""
        return self.spec.name

    @property
    def connected(self) -> bool:
        """Whether a front-end is being served."""
        return self.live is not None

    @property
    def slots(self) -> TrackedSlots | None:
        """The owner of the device's memory slots; None for the front-end."""
        return self._slots

    @property
    def slot_owner(self) -> SlotOwner:
        """The slot owner, as the configuration calls it."""
        if self._slots is None:
            return SlotOwner.FRONTEND
        return SlotOwner.AGENT if self.agent is not None else SlotOwner.LOCAL

    @property
    def buffers(self) -> BlobBuffers:
        """The memory that host blobs are made of, or would be if a front-end connected now."""
        if self.live is not None:
            return self.live.gpu.buffers
        return resolve(self.spec, self._nodes)

    @property
    def front_end_pid(self) -> int | None:
        """The front-end's process; None without one, or if it is in another PID namespace."""
        return (self._pid or None) if self.connected else None

    def reconfigure(self, spec: DeviceSpec) -> None:
        """Set another specification, for the same name.

        The limit, the rules, `guest_pat` and the outputs' modes take effect at once. Window,
        layout, buffers, render node, slots, renderers and the number of outputs take effect at the
        next connection.
        """
        assert spec.name == self.spec.name
        if spec == self.spec:
            return
        self.spec = spec
        if self.live is not None:
            self.live.reconfigure(spec)
        else:
            self._choose_slots()
        self._publish("device.changed", "the configuration has changed")

    async def alive(self) -> bool:
        """Return True once both threads of the device's session have answered.

        It waits as long as one does not answer, so the caller sets the limit.
        """
        if self.live is not None:
            await self.live.alive()
        return True

    def added(self) -> None:
        """Publish that the device was added."""
        self._publish("device.added", "the device was added")

    def removed(self) -> None:
        """Close the device and publish that it was removed, after `serve` has ended."""
        self.close()
        self._publish("device.removed", "the device was removed")

    def close(self) -> None:
        """Release what outlives a session."""
        if self.agent is not None and self.agent is not self._given:
            self.agent.close()

    def find_kvm_mode_again(self) -> None:
        """Find the KVM mode again, as an agent or a thread knows more about the VM by now."""
        if self.live is not None:
            self.live.gpu.find_kvm_mode_again()

    async def serve(self, listener: socket.socket) -> None:
        """Serve one front-end at a time, until cancelled; a second one is refused.

        A new front-end waits a short time for the former session to end, because a VMM that was
        killed may be started again at once.
        """
        loop = asyncio.get_running_loop()
        self.socket = shown(listener.getsockname())
        refusals = Refusals()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("accept failed device=%s: %s", self.name, error.strerror)
                    await asyncio.sleep(ACCEPT_RETRY)
                    continue
                try:
                    accepted = await self._accept(connection, refusals)
                except asyncio.CancelledError:
                    close_socket(connection)
                    raise
                if accepted:
                    self._begin(connection, tasks)

    def _begin(self, connection: socket.socket, tasks: asyncio.TaskGroup) -> None:
        self._free.clear()
        task = tasks.create_task(self.serve_connection(connection))
        # A task that is cancelled before it starts does not close it.
        task.add_done_callback(lambda _: close_socket(connection))

    async def _accept(self, connection: socket.socket, refusals: Refusals) -> bool:
        """Return whether to serve a connection, now that the device is free; or refuse it.

        A connection that can't be refused, because too many are not closed yet, waits.
        """
        pid = peer_credentials(connection).pid
        waits = False
        while True:
            try:
                async with asyncio.timeout(CHANGEOVER):
                    await self._free.wait()
                return True
            except TimeoutError:
                if refusals.refuse(connection):
                    log.warning(
                        "front-end refused device=%s pid=%d: pid %d is connected",
                        self.name,
                        pid,
                        self._pid,
                    )
                    return False
            if not waits:
                waits = True
                log.warning(
                    "front-end waits device=%s pid=%d: %d that were refused can't be closed yet:"
                    " files were sent to them whose filesystem or peer does not answer",
                    self.name,
                    pid,
                    MAX_CLOSING,
                )

    async def serve_connection(self, connection: socket.socket) -> None:
        """Serve one front-end until it disconnects or breaks the protocol."""
        self._free.clear()
        former, self._pid = self._pid, peer_credentials(connection).pid
        log.info("front-end connected device=%s pid=%d", self.name, self._pid)
        self.counters.sessions += 1
        self._publish("device.connected", "a front-end has connected", pid=self._pid or None)
        try:
            self._choose_slots()
            self._drop_agent_of(former)
            if self._slots is not None:  # slots that the former session left
                await self._slots.clear()
            environment = Environment(
                find_kvm_mode=self._find_kvm_mode,
                examine=self._examine,
                slots=self._slots,
                counters=self.counters,
                publish=self._publish,
                nodes=self._nodes,
                blob_ids=self._blob_ids,
            )
            self.live = compose(self.spec, environment)
            await Session(StreamSocket(connection), self.live).run()
            log.info("front-end disconnected device=%s", self.name)
        except* VgpudError as errors:
            reason = _innermost(errors)
            log.warning("session ended device=%s: %s", self.name, reason)
            self._publish("device.failed", reason)
        except* Exception:
            # A bug in vgpud: it ends this session and is logged in full. Other devices are not
            # affected.
            log.exception("session ended by an internal error device=%s", self.name)
            self._publish("device.failed", "an internal error; the daemon's log has more")
        finally:
            close_socket(connection)  # unless the session has
            self.live = self.finding = None
            self._process.close()
            self._choose_slots()
            self._publish(
                "device.disconnected", "the front-end has disconnected", pid=self._pid or None
            )
            self._free.set()

    async def _examine(self) -> None:
        """Examine, in threads, what decides the guest's memory types: KVM, and the front-end's
        process where that has the slots."""
        if self.agent is None and (self._kvm is None or monotonic() >= self._kvm_until):
            self._kvm = await asyncio.to_thread(probe_kvm.probe)
            self._kvm_until = monotonic() + FRESH
        if self._slots is None:
            await self._process.examine(self._pid)

    def _find_kvm_mode(self) -> KvmMode:
        """Return what decides the guest's memory types, as far as it can be determined."""
        if self.agent is not None:
            found = self.agent.finding()
        else:
            kvm = self._kvm or probe_kvm.probe()
            if self._slots is not None:
                found = kvm_mode.of_agent(kvm)
            else:
                found = kvm_mode.of_front_end(kvm, self._process.facts(self._pid))
        if found != self.finding:  # a guest can cause any number of probes, by resets
            log.info("guest PAT device=%s kvm=%s: %s", self.name, found.mode, found.reason)
        self.finding = found
        return found.mode

    def _drop_agent_of(self, former: int) -> None:
        """Detach the agent if it is in the former front-end's process, and so in another VM than
        the present front-end's."""
        if self.agent is None or self.agent.grant is None or not (former and self._pid):
            return
        if self.agent.grant.pid == former != self._pid:
            self.agent.lost(f"it is in process {former}, whose front-end has gone")

    def _choose_slots(self) -> None:
        """Set the slot owner that the present specification has, between two sessions."""
        if self._given is not None:
            self.agent = self._given if isinstance(self._given, AgentSlots) else None
        elif self.spec.slots is SlotOwner.AGENT:
            if self.agent is None:
                # The rule for each blob decides about guest RAM, and rules may change meanwhile.
                self.agent = AgentSlots(self.name, self._publish, allow_guest_ram=True)
            self._slots = self.agent
        else:
            self.close()
            self._slots = self.agent = None

    def _publish(
        self, kind: str, message: str, *, resource: int | None = None, **data: Json
    ) -> None:
        self._events.publish(kind, message, device=self.name, resource=resource, **data)


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
