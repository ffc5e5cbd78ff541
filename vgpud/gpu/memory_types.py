"""The `map_info` of each memory type, which RESP_OK_MAP_INFO has for the guest.

Source: virtio 1.3, 5.7.6.9 RESOURCE_MAP_BLOB.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from vgpud.coherency.slot_policy import MemoryType
from vgpud.gpu.wire.protocol import MapInfo

MAP_INFO: Final[Mapping[MemoryType, MapInfo]] = MappingProxyType(
    {
        MemoryType.WB: MapInfo.CACHED,
        MemoryType.UC: MapInfo.UNCACHED,
        MemoryType.WC: MapInfo.WC,
    }
)
"""The `map_info` of each memory type."""


def map_info_name(memory_type: MemoryType) -> str:
    """Return "cached", "uncached" or "wc", as the control API and doctor's JSON spell it."""
    return MAP_INFO[memory_type].name.lower()
