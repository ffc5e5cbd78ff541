"""Errors of slot operations that say more than an errno."""

from __future__ import annotations

from vgpud.errors import HostError


class InDoubtError(HostError):
    """It is not known whether the operation was done or will be."""


class AgentRefusedError(HostError):
    """The agent has answered that it did not perform the operation."""


class AgentGoneError(HostError):
    """The agent is gone before it performed the operation, or before it answered."""
