"""Clients of the control API for VMM authors and test writers, on blocking sockets."""

from typing import TYPE_CHECKING

from vgpud.client.client import Client

if TYPE_CHECKING:
    from vgpud.client.slot_agent import SlotAgent

__all__ = ["Client", "SlotAgent"]


def __getattr__(name: str) -> object:
    """Load SlotAgent only when it is used: it needs pydantic and a compiled module."""
    if name != "SlotAgent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vgpud.client.slot_agent import SlotAgent  # noqa: PLC0415

    return SlotAgent
