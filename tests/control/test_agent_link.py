"""The link to an agent over the control socket, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.control.control_stand import client, serving
from vgpud.control.access import AccessList
from vgpud.control.agent_link import ControlLink
from vgpud.control.call import Caller
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.control.rpc import Incoming
from vgpud.unix.fd import Fd

CALLER = Caller("/agent", 0, 1000, 1000)


class Port:
    """A control socket of which only the sink is of interest."""

    def __init__(self) -> None:
        self.sink: Callable[[Incoming | None], None] | None = None

    def send(self, caller: Caller, data: bytes, fd: Fd | None) -> None:
        raise AssertionError("nothing is sent")

    def replies_from(
        self, caller: Caller, device: str, sink: Callable[[Incoming | None], None] | None
    ) -> None:
        self.sink = sink


AGENT = AccessRule(("1000",), device="gpu0")
NOT_THE_MEMORY = AccessRule(("1000",), grants=frozenset({AccessGrant.OBSERVE, AccessGrant.CHANGE}))


def test_an_agent_that_may_call_no_more_is_gone() -> None:
    """Or what it answers would not be heard, and everything that it is asked would be late."""

    async def main() -> None:
        port, reasons = Port(), list[str]()
        link = ControlLink(port, CALLER, "gpu0", reasons.append)
        waiting = asyncio.create_task(link.recv())
        await asyncio.sleep(0)
        assert port.sink is not None
        port.sink(None)
        assert await waiting is None
        assert reasons == ["it may no longer take the device's memory"]
        assert port.sink is None

    asyncio.run(main())


def test_answers_of_those_who_may_call_no_more_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    taken: list[Incoming | None] = []

    def change() -> None:
        running.server.replies_from(CALLER, "gpu0", taken.append)
        running.server.access = AccessList(AGENT)
        assert taken == []
        running.server.access = AccessList(replace(AGENT, device="gpu1"), NOT_THE_MEMORY)
        assert taken == [None]
        running.server.access = AccessList()

    with serving(path) as running, client(tmp_path / "agent", path):
        running.do(change)
    assert taken == [None]
