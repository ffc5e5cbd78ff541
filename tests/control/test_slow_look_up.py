"""A user database that takes long to answer, as one on another host may."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.control.control_stand import CALL, ask, client, serving
from vgpud.control.access import AccessList
from vgpud.control.grants import AccessRule


def test_a_slow_user_database_costs_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that wait for it keep their order."""
    began, answered = threading.Event(), threading.Event()

    def groups(name: str, gid: int) -> list[int]:
        began.set()
        assert answered.wait(10)
        return [gid, 77]

    monkeypatch.setattr(os, "getgrouplist", groups)
    path = tmp_path / "control.sock"
    access = AccessList(AccessRule(groups=("77",)))
    access._own_user = -1
    with serving(path, access=access) as running, client(tmp_path / "me", path) as me:
        for number in range(5):
            me.send(CALL % number)
        assert began.wait(5)
        start = time.monotonic()
        assert running.do(lambda: True)
        assert time.monotonic() - start < 1
        answered.set()
        assert [json.loads(me.recv(1 << 16))["id"] for _ in range(5)] == [*range(5)]
        assert ask(me, CALL % 9)["id"] == 9
        assert len(running.server._reception) == 0
