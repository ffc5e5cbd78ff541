"""The configuration space. Source: virtio 1.3, 5.7.4 "Device configuration layout"."""

from __future__ import annotations

from vgpud.gpu.wire import responses
from vgpud.gpu.wire.protocol import ConfigEvent
from vgpud.memory.window_map import BLOB_ALIGNMENT

EVENTS_CLEAR_OFFSET = 4


class ConfigSpace:
    """The configuration space; `events` are the bits of events_read."""

    def __init__(self, num_scanouts: int, num_capsets: int) -> None:
        self._num_scanouts = num_scanouts
        self._num_capsets = num_capsets
        self.events = ConfigEvent(0)

    def read(self) -> bytes:
        """Return the configuration space: 20 bytes."""
        return responses.config_space(
            events_read=self.events,
            num_scanouts=self._num_scanouts,
            num_capsets=self._num_capsets,
            blob_alignment=BLOB_ALIGNMENT,
        )

    def write(self, offset: int, data: bytes) -> None:
        """Handle a driver's write: only events_clear, the second word, has an effect."""
        space = bytearray(len(self.read()))
        space[offset : offset + len(data)] = data[: max(len(space) - offset, 0)]
        clear = int.from_bytes(space[EVENTS_CLEAR_OFFSET : EVENTS_CLEAR_OFFSET + 4], "little")
        self.events &= ~ConfigEvent(clear & ConfigEvent.DISPLAY)
