"""Events: their numbers, and their delivery with any contents."""

from __future__ import annotations

from vgpud.control.events import Events
from vgpud.control.models import Event


def test_numbers_and_listeners() -> None:
    told: list[Event] = []
    events = Events()
    events.publish("gpu.added", "to nobody")
    events.listen(told.append)
    events.publish("slot.set", "a slot", device="gpu0", resource=7, flags=8)
    assert events.sequence == 2
    [event] = told
    assert (event.sequence, event.kind, event.device, event.resource) == (2, "slot.set", "gpu0", 7)
    assert event.data == {"flags": 8}


def test_a_message_with_a_name_that_is_no_text() -> None:
    """A message may have a file name that is not UTF-8, which must not fail its publisher."""
    told: list[Event] = []
    events = Events()
    events.listen(told.append)
    events.publish("config.rejected", "/etc/caf\udce9.toml: is gone")
    assert told[0].message == "/etc/caf\\udce9.toml: is gone"
