"""What this CPU can do: the facade of cpu.c."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vgpud.native._native import lib

#: Bytes in a cache line, by CPUID.
CACHE_LINE: Final[int] = lib.vgpud_cache_line_size()

_CPU_FEATURES: Final[dict[str, int]] = {
    "clflushopt": lib.VGPUD_CPU_CLFLUSHOPT,
    "clwb": lib.VGPUD_CPU_CLWB,
    "avx2": lib.VGPUD_CPU_AVX2,
    "avx512f": lib.VGPUD_CPU_AVX512,
    "self-snoop": lib.VGPUD_CPU_SELF_SNOOP,
    "hypervisor": lib.VGPUD_CPU_HYPERVISOR,
}


def cpu_features() -> frozenset[str]:
    """Return which of clflushopt, clwb, avx2, avx512f, self-snoop, hypervisor this CPU has."""
    bits = lib.vgpud_cpu_features()
    return frozenset(name for name, bit in _CPU_FEATURES.items() if bits & bit)


def limit_cpu_features(allowed: Collection[str] = _CPU_FEATURES) -> None:
    """Use no CPU features but these, in the whole process; without argument, use all of them again.

    For tests of the fallbacks; not to be called while other threads use the module.
    """
    lib.vgpud_limit_cpu_features(sum(_CPU_FEATURES[name] for name in set(allowed)))
