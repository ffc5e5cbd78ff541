"""Access to the control socket, by the names of this system's users and groups."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from vgpud.control.access import AccessList
from vgpud.control.call import Caller

NOBODY = pwd.getpwnam("nobody")
UNKNOWN = 3_999_999_999


def caller(uid: int, gid: int = UNKNOWN) -> Caller:
    return Caller("/run/me", 1, uid, gid)


def test_the_own_user_always() -> None:
    assert AccessList().allows(caller(os.geteuid()))
    assert not AccessList().allows(caller(UNKNOWN))
    assert not AccessList().allows(caller(0xFFFFFFFF, 0xFFFFFFFF))


def test_users_by_name() -> None:
    access = AccessList(["nobody"])
    assert access.allows(caller(NOBODY.pw_uid))
    assert not access.allows(caller(UNKNOWN, NOBODY.pw_gid))


def test_groups_by_the_callers_own_and_by_membership() -> None:
    group = grp.getgrgid(NOBODY.pw_gid).gr_name
    access = AccessList(allow_groups=[group])
    assert access.allows(caller(UNKNOWN, NOBODY.pw_gid))
    # By the database, whatever group it runs with.
    assert access.allows(caller(NOBODY.pw_uid, UNKNOWN))
    assert not access.allows(caller(UNKNOWN, UNKNOWN))


def test_a_member_by_the_group_database(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def groups(name: str, gid: int) -> list[int]:
        asked.append(name)
        return [gid, 77]

    monkeypatch.setattr(os, "getgrouplist", groups)
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "", 77, [])))
    access = AccessList(allow_groups=["video"])
    for _ in range(3):
        assert access.allows(caller(NOBODY.pw_uid))
    assert asked == ["nobody"]  # it may take a while
    assert not access.allows(caller(UNKNOWN))


def test_an_unknown_name_is_told_and_allows_nobody(caplog: pytest.LogCaptureFixture) -> None:
    access = AccessList(["no-such-user"], ["no-such-group", "\0"])
    assert "daemon.allow_users name='no-such-user'" in caplog.text
    assert "daemon.allow_groups name='no-such-group'" in caplog.text
    assert not access.allows(caller(UNKNOWN))


def test_what_is_remembered_is_bounded() -> None:
    access = AccessList()
    for uid in range(UNKNOWN - 5000, UNKNOWN):
        assert not access.allows(caller(uid))
    assert len(access._known) <= 1024


def test_a_refusal_says_who_and_what_to_change() -> None:
    error = AccessList().refusal(caller(12, 34))
    assert error.data == {"kind": "not-allowed", "uid": 12, "gid": 34}
    for text in ("uid 12", "gid 34", "allow_users", "allow_groups"):
        assert text in error.message
