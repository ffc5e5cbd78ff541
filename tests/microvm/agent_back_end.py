"""A back-end process whose slots an agent sets: `--fd`, `--agent-fd` and `--config`, as `BackEnd`
gives them. `VGPUD_TEST_SLOT_FLAGS` are the flags to ask for."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from pathlib import Path

from vgpud.control.agent_link import SocketLink
from vgpud.control.events import Events
from vgpud.daemon.config import Config
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.spec import DeviceSpec
from vgpud.microvm import boot
from vgpud.microvm.slots import NUMBERS
from vgpud.slots.agent import AgentSlots, Grant
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import FdSocket
from vgpud.vhost.session import FrontEndSession
from vgpud.vhost.wire.protocol import Gpa


class FlaggedSlots:
    """A `gpu.ports.BarSlots` that asks for flags whatever the device says."""

    def __init__(self, slots: AgentSlots, flags: int) -> None:
        self._slots = slots
        self._flags = flags

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        await self._slots.map(fd, fd_offset, bar_offset, length, flags=flags | self._flags)

    async def unmap(self, bar_offset: int, length: int) -> None:
        await self._slots.unmap(bar_offset, length)


class AgentSession(FrontEndSession):
    """A session whose device does not ask the front-end to map."""

    def __init__(self, connection: FdSocket, spec: DeviceSpec, slots: FlaggedSlots) -> None:
        super().__init__(connection, spec)
        self.gpu = Gpu(spec, self._memory, slots, self._timelines)


async def serve(connection: socket.socket, agent: socket.socket, spec: DeviceSpec) -> None:
    """Serve until the front-end hangs up."""
    slots = AgentSlots(spec.name, Events(), patience=2.0)
    slots.connect(SocketLink(agent), Grant(NUMBERS, Gpa(boot.WINDOW_GPA)))
    flagged = FlaggedSlots(slots, int(os.environ.get("VGPUD_TEST_SLOT_FLAGS", "0")))
    try:
        await AgentSession(FdSocket(connection), spec, flagged).run()
    finally:
        slots.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--agent-fd", type=int)
    parser.add_argument("--config", type=Path)
    args, _ = parser.parse_known_args()
    (spec,) = Config.load(args.config).device_specs()
    connection, agent = socket.socket(fileno=args.fd), socket.socket(fileno=args.agent_fd)
    asyncio.run(serve(connection, agent, spec))


if __name__ == "__main__":
    main()
