"""What a device's slots need of the connection to an agent.

`control.agent_calls` implements it by JSON-RPC.
"""

from __future__ import annotations

from typing import Protocol

from vgpud.slots.table import Operation
from vgpud.unix.fd import Fd


class AgentConnection(Protocol):
    """The connection to one agent, which performs operations in the order in which they were sent.

    `file` has the pages of a slot that is to be set; it stays the caller's.
    """

    async def ask(self, operation: Operation, file: Fd | None) -> None:
        """Have the agent perform an operation, once it has answered all that was sent before.

        Raises AgentRefusedError if it answers with an error, AgentGoneError, InDoubtError if it was
        sent and not answered in time, and HostError if it was not sent.
        """

    def post(self, operation: Operation, file: Fd | None) -> None:
        """Send an operation without waiting for an answer. Raises AgentGoneError, HostError."""

    def check(self) -> None:
        """Raise AgentGoneError if the agent's socket is gone; asks the agent for nothing."""

    def close(self) -> None:
        """Forget what was to be sent, and end what waits for an answer."""
