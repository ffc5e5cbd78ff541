"""The control API for VMM authors and test writers, on blocking sockets."""

from vgpud.client.client import Client
from vgpud.client.slot_agent import SlotAgent

__all__ = ["Client", "SlotAgent"]
