"""Access to the control socket, by the names of this system's users and groups."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from vgpud.control.access import AccessList
from vgpud.control.call import Caller
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.control.methods import METHODS
from vgpud.control.rpc import RpcError

NOBODY = pwd.getpwnam("nobody")
UNKNOWN = 3_999_999_999


def caller(uid: int, gid: int = UNKNOWN) -> Caller:
    return Caller("/run/me", 1, uid, gid)


def test_the_own_user_always() -> None:
    assert AccessList().allows(caller(os.geteuid()))
    assert not AccessList().allows(caller(UNKNOWN))
    assert not AccessList().allows(caller(0xFFFFFFFF, 0xFFFFFFFF))


def test_users_by_name() -> None:
    access = AccessList(AccessRule(("nobody",)))
    assert access.allows(caller(NOBODY.pw_uid))
    assert not access.allows(caller(UNKNOWN, NOBODY.pw_gid))


def test_groups_by_the_callers_own_and_by_membership() -> None:
    group = grp.getgrgid(NOBODY.pw_gid).gr_name
    access = AccessList(AccessRule(groups=(group,)))
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
    access = AccessList(AccessRule(groups=("video",)))
    for _ in range(3):
        assert access.allows(caller(NOBODY.pw_uid))
    assert asked == ["nobody"]  # it may take a while
    assert not access.allows(caller(UNKNOWN))


def test_an_unknown_name_is_told_and_allows_nobody(caplog: pytest.LogCaptureFixture) -> None:
    access = AccessList(AccessRule(("no-such-user",), ("no-such-group", "\0")))
    assert "[daemon] allow_users name='no-such-user'" in caplog.text
    assert "[daemon] allow_groups name='no-such-group'" in caplog.text
    assert not access.allows(caller(UNKNOWN))


def test_an_unknown_name_of_a_device_is_told_with_its_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    AccessList(AccessRule(groups=("no-such-group",), device="gpu1"))
    assert "[[device]] gpu1 allow_groups name='no-such-group'" in caplog.text


@pytest.mark.parametrize("name", ["domain users", "Gästegruppe", "DOM\\user", "user@dom"])
def test_the_system_decides_what_is_a_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = {name: grp.struct_group((name, "", 77, []))}
    monkeypatch.setattr(grp, "getgrnam", known.__getitem__)
    assert AccessList(AccessRule(groups=(name,))).allows(caller(UNKNOWN, 77))


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


VMM = caller(1000)
MONITOR = caller(1001)
ADMIN = caller(1002)
ACCESS = AccessList(
    AccessRule(("1002",)),
    AccessRule(("1001",), grants=frozenset({AccessGrant.OBSERVE})),
    AccessRule(("1000",), grants=frozenset({AccessGrant.MEMORY}), device="gpu0"),
    AccessRule(("1000",), grants=frozenset({AccessGrant.CHANGE}), device="gpu1"),
)


def allowed(who: Caller, method: str, device: str | None) -> bool:
    try:
        ACCESS.check(who, METHODS[method], device)
    except RpcError:
        return False
    return True


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_one_grant_of_one_device(name: str) -> None:
    method = METHODS[name]
    of_device = "device" in method.params.model_fields
    assert isinstance(method.grant, AccessGrant)
    assert not (of_device and method.whole_daemon)
    for device in ("gpu0", "gpu1", "gpu2") if of_device else (None,):
        assert allowed(ADMIN, name, device)
        assert allowed(MONITOR, name, device) == (method.grant is AccessGrant.OBSERVE)
        has = {"gpu0": {AccessGrant.MEMORY}, "gpu1": {AccessGrant.CHANGE}, "gpu2": set()}
        if device is not None:
            assert allowed(VMM, name, device) == (method.grant in has[device])
        else:  # neither the whole daemon, nor what it may observe of no device
            assert not allowed(VMM, name, device)
        assert not allowed(caller(UNKNOWN), name, device)


@pytest.mark.parametrize(
    ("method", "device", "texts"),
    [
        ("blob.export", "gpu1", ("for device gpu1", 'a [[device]] with "memory" in its grants')),
        ("device.list", None, ("for any device", 'a [[device]] with "observe" in its grants')),
        ("config.reload", None, ('"change" for the daemon', "allow_groups of [daemon]")),
    ],
)
def test_an_error_says_which_grant_is_missing_and_what_gives_it(
    method: str, device: str | None, texts: tuple[str, ...]
) -> None:
    with pytest.raises(RpcError) as caught:
        ACCESS.check(VMM, METHODS[method], device)
    assert caught.value.data == {
        "kind": "not-allowed",
        "uid": 1000,
        "gid": UNKNOWN,
        "grant": METHODS[method].grant,
        "device": device,
    }
    for text in (*texts, method, "allow_users and allow_groups"):
        assert text in caught.value.message


def test_the_grants_by_method() -> None:
    """Who may observe can't change anything, and gets no memory that it could write."""
    by_grant = {
        grant: {m.name for m in METHODS.values() if m.grant is grant} for grant in AccessGrant
    }
    assert by_grant[AccessGrant.CHANGE] == {"config.reload", "device.resize"}
    assert by_grant[AccessGrant.MEMORY] == {
        *("agent.attach", "agent.detach", "blob.create", "blob.destroy"),
        *("blob.export", "blob.map", "blob.unmap"),
    }


def test_rules_add_up() -> None:
    observe, change = frozenset({AccessGrant.OBSERVE}), frozenset({AccessGrant.CHANGE})
    access = AccessList(
        AccessRule(("1000",), grants=observe), AccessRule(("1000",), (), change, "gpu0")
    )
    assert access.grants(VMM, AccessGrant.OBSERVE, "gpu1")
    assert access.grants(VMM, AccessGrant.CHANGE, "gpu0")
    assert not access.grants(VMM, AccessGrant.CHANGE, "gpu1")
    assert not access.grants(VMM, AccessGrant.CHANGE, None)


class Clock:
    """The time, for a look-up's age."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("vgpud.control.access.monotonic", lambda: self.now)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int] | None]:
    """The group database, by user; None is one that fails."""
    found: dict[str, list[int] | None] = {"nobody": [77]}

    def look_up(name: str, gid: int) -> list[int]:
        numbers = found[name]
        if numbers is None:
            raise OSError("the database is being restarted")
        return [gid, *numbers]

    monkeypatch.setattr(os, "getgrouplist", look_up)
    return found


def test_a_membership_that_ends_is_noticed_after_a_minute(
    monkeypatch: pytest.MonkeyPatch, groups: dict[str, list[int] | None]
) -> None:
    clock, who = Clock(monkeypatch), caller(NOBODY.pw_uid)
    access = AccessList(AccessRule(groups=("77",)))
    assert not access.knows(who)
    access.look_up(who)
    assert access.knows(who)
    assert access.allows(who)
    groups["nobody"] = []
    clock.now += 59
    assert access.knows(who)
    clock.now += 2
    assert not access.knows(who)
    assert access.allows(who)  # until it is looked up, in a thread
    access.look_up(who)
    assert not access.allows(who)


def test_a_failed_look_up_counts_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch, groups: dict[str, list[int] | None]
) -> None:
    clock, who = Clock(monkeypatch), caller(NOBODY.pw_uid)
    access = AccessList(AccessRule(groups=("77",)))
    groups["nobody"] = None
    access.look_up(who)
    assert not access.allows(who)
    groups["nobody"] = [77]
    clock.now += 1.5
    assert not access.knows(who)
    access.look_up(who)
    assert access.allows(who)


def test_what_was_known_counts_while_the_database_fails(
    monkeypatch: pytest.MonkeyPatch, groups: dict[str, list[int] | None]
) -> None:
    """Else agents would be detached when it is restarted. It does not count for ever."""
    clock, who = Clock(monkeypatch), caller(NOBODY.pw_uid)
    access = AccessList(AccessRule(groups=("77",)))
    access.look_up(who)
    groups["nobody"] = None
    clock.now += 300
    access.look_up(who)
    assert access.allows(who)
    clock.now += 301
    access.look_up(who)
    assert not access.allows(who)


def test_each_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def group(name: str) -> grp.struct_group:
        asked.append(name)
        return grp.struct_group((name, "", 77, []))

    monkeypatch.setattr(grp, "getgrnam", group)
    AccessList(AccessRule(groups=("one", "two")))
    assert asked == ["one", "two"]
