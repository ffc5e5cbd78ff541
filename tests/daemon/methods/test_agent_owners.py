"""Which client may be the agent of a device: one socket, several devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.daemon.methods.stand import kind_of
from tests.support.agent_daemon import spec
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.call import Caller
from vgpud.control.events import Events
from vgpud.control.params import AttachAgent, OfDevice
from vgpud.control.rpc import Incoming, RpcError
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.agents import AgentMethods
from vgpud.unix.fd import Fd


class Port:
    """A control socket that nothing comes from."""

    def send(self, caller: Caller, data: bytes, fd: Fd | None) -> None:
        raise AssertionError("no agent without slots is asked for anything")

    def replies_from(
        self, caller: Caller, device: str, sink: Callable[[Incoming | None], None] | None
    ) -> None:
        pass


def test_a_socket_is_the_agent_of_one_device() -> None:
    """Its answers do not say which device's slot they are about."""

    async def main() -> None:
        names = ("gpu0", "gpu1")
        devices = {
            name: DeviceServer(spec(name, SlotOwner.AGENT), events=Events()) for name in names
        }
        handlers = AgentMethods(devices, Port()).handlers()
        caller = Caller(b"\0agent", 0, 0, 0)
        first, second = (
            AttachAgent(device=name, guest_phys_addr=None, first_slot=1, slot_count=1)
            for name in names
        )

        async def attach(params: AttachAgent) -> None:
            answer = handlers["agent.attach"](params, caller)
            assert asyncio.iscoroutine(answer)
            await answer

        await attach(first)
        with pytest.raises(RpcError, match="is the agent of gpu0 already") as caught:
            await attach(second)
        assert kind_of(caught.value) == "not-possible"
        await attach(first)  # as the BAR moves
        handlers["agent.detach"](OfDevice(device="gpu0"), caller)
        await attach(second)
        for device in devices.values():
            device.close()

    asyncio.run(main())
