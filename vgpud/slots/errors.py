"""Why an operation on a slot was not done, where more is known than the errno."""

from __future__ import annotations

from vgpud.errors import HostError


class InDoubtError(HostError):
    """It is not known whether an operation was done: it may have been, or will be."""


class AgentRefusedError(HostError):
    """The agent has answered that it did not do it."""


class AgentGoneError(HostError):
    """The agent that would have done it, or answered, is there no longer."""
