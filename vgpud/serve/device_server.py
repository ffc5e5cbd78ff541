"""One device's socket: waits for a front-end, serves it, waits for the next.

Owns the listening socket and the seam where a session's failure ends: it is logged here, once, and
the daemon and its other devices go on.
"""

from __future__ import annotations

import asyncio
import logging
import socket

import numpy as np
from numpy.typing import NDArray

from vgpud.device.spec import DeviceSpec
from vgpud.errors import VgpudError
from vgpud.host import peer, probe_kvm
from vgpud.host.peer import peer_pid
from vgpud.policy import kvm_mode
from vgpud.policy.coherency import KvmMode
from vgpud.serve.fd_socket import FdSocket
from vgpud.serve.front_end import FrontEndSession
from vgpud.serve.table_slots import TableSlots

log = logging.getLogger(__name__)

ACCEPT_RETRY = 1.0
"""Seconds to wait where a connection can't be taken, such as for want of descriptors."""

CHANGEOVER = 2.0
"""Seconds that a front-end waits for the one before it to end, which takes milliseconds."""


class DeviceServer:
    """A device that front-ends can connect to, or the one that is connected already.

    `agent` sets its memory slots, if the front-ends are not to do it.
    """

    def __init__(self, spec: DeviceSpec, agent: TableSlots | None = None) -> None:
        self.spec = spec
        self._agent = agent
        self.session: FrontEndSession | None = None
        self._free = asyncio.Event()
        self._free.set()
        self._pid = 0

    @property
    def name(self) -> str:
        """The device's name in the configuration."""
        return self.spec.name

    @property
    def connected(self) -> bool:
        """Whether a front-end is being served."""
        return self.session is not None

    def screenshot(self, scanout_id: int = 0) -> NDArray[np.uint8] | None:
        """What a scanout shows, (height, width, 3) of R, G, B; None if nothing is connected, or it
        is off."""
        return self.session.gpu.screenshot(scanout_id) if self.session is not None else None

    async def serve(self, listener: socket.socket) -> None:
        """Serves one front-end at a time, until cancelled; a second one is turned away.

        One that comes right after another gets time for that one to end: a VMM that was killed is
        started again at once.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("accept failed device=%s: %s", self.name, error.strerror)
                    await asyncio.sleep(ACCEPT_RETRY)
                    continue
                try:
                    async with asyncio.timeout(CHANGEOVER):
                        await self._free.wait()
                except TimeoutError:
                    log.warning(
                        "front-end turned away device=%s pid=%d: pid %d is connected",
                        self.name,
                        peer_pid(connection),
                        self._pid,
                    )
                    connection.close()
                    continue
                except asyncio.CancelledError:
                    connection.close()
                    raise
                self._free.clear()
                tasks.create_task(self.serve_connection(connection))

    async def serve_connection(self, connection: socket.socket) -> None:
        """Serves one front-end until it goes, or breaks the protocol."""
        self._free.clear()
        self._pid = peer_pid(connection)
        log.info("front-end connected device=%s pid=%d", self.name, self._pid)
        try:
            with connection:
                if self._agent is not None:  # what the session before this one left
                    await self._agent.clear()
                self.session = FrontEndSession(
                    FdSocket(connection), self.spec, look=self._look, agent=self._agent
                )
                await self.session.run()
            log.info("front-end gone device=%s", self.name)
        except* VgpudError as errors:
            log.warning("session ended device=%s: %s", self.name, _innermost(errors))
        except* Exception:
            # A bug of ours: it costs this session, and is told in full. The other devices have no
            # part in it.
            log.exception("session ended by an internal error device=%s", self.name)
        finally:
            self.session = None
            self._free.set()

    def _look(self) -> KvmMode:
        """Sees what decides the guest's memory types, as far as it can be seen."""
        kvm = probe_kvm.probe()
        if self._agent is not None:
            found = kvm_mode.of_agent(kvm)
        else:
            found = kvm_mode.of_front_end(kvm, peer.look(self._pid))
        log.info("guest PAT device=%s kvm=%s: %s", self.name, found.mode, found.reason)
        return found.mode


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
