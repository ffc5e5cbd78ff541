"""Small files that the kernel writes, for the probes: below a root, so that another host's can be
given.

Source: proc(5), sysfs(5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


def text(path: Path) -> str | None:
    """What a file says, without the white space around it; None if it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """What a file says as a decimal number; None if it is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def switch(path: Path) -> bool | None:
    """What a module parameter that is a truth value says: Y or N, 1 or 0."""
    return {"Y": True, "1": True, "N": False, "0": False}.get(text(path) or "")


def cpu(root: Path, key: str) -> str:
    """What /proc/cpuinfo says of the first processor; empty if it does not."""
    for line in (text(root / "proc/cpuinfo") or "").split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def cpu_flags(root: Path) -> frozenset[str]:
    """The first processor's flags, as the kernel has them after its list of errata."""
    return frozenset(cpu(root, "flags").split())
