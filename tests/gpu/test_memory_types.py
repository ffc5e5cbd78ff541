"""What a guest is told of memory types, and how the control API spells it."""

from __future__ import annotations

from vgpud.coherency.slot_policy import MemoryType
from vgpud.control.models import MapInfoName
from vgpud.gpu.memory_types import MAP_INFO, map_info_name
from vgpud.gpu.wire.protocol import MapInfo


def test_every_memory_type_has_a_value_of_its_own() -> None:
    assert MAP_INFO.keys() == set(MemoryType)
    assert set(MAP_INFO.values()) == set(MapInfo) - {MapInfo.NONE}


def test_the_control_api_has_a_name_for_each() -> None:
    assert {map_info_name(memory_type) for memory_type in MemoryType} == set(MapInfoName)
