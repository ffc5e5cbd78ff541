"""Small text files of the kernel below a root, which may be a recording of another host's.

Source: proc(5), sysfs(5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


def text(path: Path) -> str | None:
    """Return the text of a file, without surrounding white space; None if it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """Return the decimal number in a file; None if there is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def switch(path: Path) -> bool | None:
    """Return the value of a boolean module parameter: Y or N, 1 or 0; None for anything else."""
    return {"Y": True, "1": True, "N": False, "0": False}.get(text(path) or "")


def cpu(root: Path, key: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty if it is not there."""
    for line in (text(root / "proc/cpuinfo") or "").split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def cpu_flags(root: Path) -> frozenset[str]:
    """Return the first processor's flags, without those that the kernel clears for errata."""
    return frozenset(cpu(root, "flags").split())
