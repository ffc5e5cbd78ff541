"""The interface of the connection to a slot agent; `control.agent_calls` implements it."""

from __future__ import annotations

from typing import Protocol

from vgpud.slots.table import Operation
from vgpud.unix.fd import Fd


class AgentConnection(Protocol):
    """The connection to one agent, which performs operations in the order in which they were sent.

    `file` is the memory of a slot to be set; the caller still owns it.
    """

    async def ask(self, operation: Operation, file: Fd | None) -> None:
        """Send an operation after the answers to all former ones, and wait until it is done.

        Raises AgentRefusedError if the agent answers with an error, AgentGoneError if it is gone,
        InDoubtError if the operation was sent and not answered in time, and HostError if it could
        not be sent.
        """

    @property
    def unanswered(self) -> int:
        """How many operations were posted or sent and have no answer yet."""

    def post(self, operation: Operation, file: Fd | None) -> None:
        """Send an operation without waiting for an answer; not again if it deletes a slot that is
        being deleted. Raises AgentGoneError, HostError."""

    def check(self) -> None:
        """Raise AgentGoneError if the agent's socket is closed, without a request to the agent."""

    def close(self) -> None:
        """Drop what was not sent yet, and end all waits for answers."""
