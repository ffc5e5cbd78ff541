"""The system service under a real systemd: one boot of a host does it all, see checks.py there.

Much of what the units promise is a matter of the kernel and of systemd's version: this is systemd
257 as PID 1 on the tests' own kernel, with nested KVM, vgem and udmabuf.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.boots import Boots

# A boot with its checks ends within machine.TIMEOUT_S.
pytestmark = [pytest.mark.guest, pytest.mark.boots("systemd"), pytest.mark.timeout(1800)]

SOURCE = ast.parse((Path(__file__).parent / "checks.py").read_text())
"""Read, and not imported: what is in there is the guest's business."""


def names() -> list[str]:
    """The checks, in their order."""
    [chosen] = [
        node.value
        for node in SOURCE.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CHECKS"
    ]
    assert chosen is not None
    return [node.id for node in ast.walk(chosen) if isinstance(node, ast.Name)]


@pytest.fixture(scope="module")
def results(boots: Boots, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """What came of each check."""
    job = boots.job("systemd")
    report(f"systemd: {job.boot:.1f} s to init, {job.total:.1f} s with all checks")
    assert job.status == 0, job.text
    found: dict[str, dict[str, Any]] = json.loads(job.files["systemd.json"])
    for name, result in found.items():
        last = result["said"].splitlines()[-1:] or [""]
        report(f"  {name}, {result['seconds']} s: {last[0][:200]}")
    return found


@pytest.mark.parametrize("name", names())
def test_under_systemd(results: dict[str, dict[str, Any]], name: str) -> None:
    assert results[name]["ok"], results[name]["said"]
