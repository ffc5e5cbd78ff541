"""A back-end process whose slots an agent sets, with the options that `BackEndProcess` gives it.

`VGPUD_TEST_SLOT_FLAGS` are the flags to ask for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from itertools import count
from pathlib import Path

from vgpud.control.agent_calls import AgentCalls
from vgpud.control.agent_link import SocketLink
from vgpud.daemon.config import Config
from vgpud.gpu.compose import compose
from vgpud.gpu.environment import Environment
from vgpud.gpu.spec import DeviceSpec
from vgpud.memory.addresses import Gpa
from vgpud.microvm import boot
from vgpud.microvm.slots import NUMBERS
from vgpud.publish import unheard
from vgpud.slots.agent import AgentSlots, Grant
from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.session import Session


class FlaggedSlots(AgentSlots):
    """Slots that are set with `more_flags`, whatever the device says."""

    more_flags = int(os.environ.get("VGPUD_TEST_SLOT_FLAGS", "0"))

    async def map(
        self,
        fd: Fd,
        fd_offset: int,
        bar_offset: int,
        length: int,
        *,
        flags: int = 0,
        use: SlotUse = SlotUse.BAR,
    ) -> None:
        flags |= self.more_flags
        await super().map(fd, fd_offset, bar_offset, length, flags=flags, use=use)


async def serve(connection: socket.socket, agent: socket.socket, spec: DeviceSpec) -> None:
    """Serve until the front-end hangs up."""
    slots = FlaggedSlots(spec.name, unheard)
    calls = AgentCalls(SocketLink(agent), count(1), patience=2.0)
    slots.connect(calls, Grant(NUMBERS, Gpa(boot.WINDOW_GPA)))
    device = compose(spec, Environment(slots=slots))
    try:
        await Session(StreamSocket(connection), device).run()
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
