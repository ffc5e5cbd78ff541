"""What this CPU can do."""

from __future__ import annotations

import re
from pathlib import Path

from vgpud.native.cpu import CACHE_LINE, cpu_features


def test_cpu_features_agree_with_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text(encoding="ascii")
    flags = set(re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    known = {
        "clflushopt": "clflushopt",
        "clwb": "clwb",
        "avx2": "avx2",
        "avx512f": "avx512f",
        "self-snoop": "ss",
        "hypervisor": "hypervisor",
    }
    assert cpu_features() == {name for name, flag in known.items() if flag in flags}
    assert f"clflush size\t: {CACHE_LINE}\n" in text
