"""Access control of the control socket: who has which grants, for which devices.

Callers are known by their credentials. Names of users and groups, and group memberships, are looked
up in the databases of nsswitch.conf(5). A look-up may be slow, so its result is cached. Source:
unix(7), SCM_CREDENTIALS.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vgpud.control.accounts import group_id, unknown, user_id
from vgpud.control.call import Caller, refused
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.control.methods import Method
from vgpud.control.models import ErrorKind
from vgpud.control.rpc import RpcError

_log = logging.getLogger(__name__)

_MAX_REMEMBERED: Final = 1024
"""Users. Any user of the system may send a datagram and be looked up, so the cache has a limit."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    rule: AccessRule
    users: frozenset[int]
    groups: frozenset[int]


class AccessList:
    """The grants by rules, which add up. The daemon's own user has all grants.

    A group's members are those in the group database, and processes that have it as their primary
    group. A process's supplementary groups are not in its credentials, so they don't count.
    """

    def __init__(self, *rules: AccessRule) -> None:
        self._own_user = os.geteuid()
        for rule in rules:
            for key, name in unknown(rule):
                text = "unknown name in %s %s name=%r: it is ignored"
                _log.warning(text, rule.table, key, name, extra={"vgpud_unlimited": True})
        self._rules = [
            _Resolved(rule, _ids(map(user_id, rule.users)), _ids(map(group_id, rule.groups)))
            for rule in rules
            if rule.users or rule.groups
        ]
        self._groups = frozenset[int]().union(*(resolved.groups for resolved in self._rules))
        self._known: dict[tuple[int, int], tuple[AccessRule, ...]] = {}

    @property
    def users(self) -> frozenset[int]:
        """The numbers of all users that have a grant by a rule about users."""
        return frozenset[int]().union(*(resolved.users for resolved in self._rules))

    @property
    def groups(self) -> frozenset[int]:
        """The numbers of all groups whose members have a grant."""
        return self._groups

    def knows(self, caller: Caller) -> bool:
        """Return whether the caller's grants are known without a look-up, which may take long."""
        return not self._groups or (caller.uid, caller.gid) in self._known

    def look_up(self, caller: Caller) -> None:
        """Look the caller's groups up, in any thread, so that its grants are known."""
        self._rules_of(caller)

    def allows(self, caller: Caller) -> bool:
        """Return whether the caller has any grant."""
        return caller.uid == self._own_user or bool(self._rules_of(caller))

    def grants(self, caller: Caller, grant: AccessGrant, device: str | None) -> bool:
        """Return whether the caller has a grant for a device, or for the daemon with None."""
        return caller.uid == self._own_user or any(
            grant in rule.grants and rule.device in (None, device)
            for rule in self._rules_of(caller)
        )

    def grants_any(self, caller: Caller, grant: AccessGrant) -> bool:
        """Return whether the caller has a grant for the daemon or for at least one device."""
        return caller.uid == self._own_user or any(
            grant in rule.grants for rule in self._rules_of(caller)
        )

    def refusal(self, caller: Caller) -> RpcError:
        """Return the error for a caller without any grant."""
        return refused(
            ErrorKind.NOT_ALLOWED,
            f"uid {caller.uid} gid {caller.gid} may not use this socket; the daemon's config says"
            " who may, in allow_users and allow_groups of [daemon] and of each [[device]]",
            uid=caller.uid,
            gid=caller.gid,
        )

    def check(self, caller: Caller, method: Method, device: str | None) -> None:
        """Raise RpcError if the caller lacks the grant for a method, of a device or without one."""
        if method.whole_daemon or device is not None:
            allowed = self.grants(caller, method.grant, device)
        else:
            allowed = self.grants_any(caller, method.grant)
        if allowed:
            return
        keys = "allow_users and allow_groups"
        if method.whole_daemon:
            what, where = "the daemon", f"{keys} of [daemon]"
        else:
            what = "any device" if device is None else f"device {device}"
            where = f'{keys} of [daemon], or of a [[device]] with "{method.grant}" in its grants'
        raise refused(
            ErrorKind.NOT_ALLOWED,
            f"uid {caller.uid} gid {caller.gid} may not call {method.name}: it lacks the grant"
            f' "{method.grant}" for {what}, which the daemon\'s config gives by {where}',
            uid=caller.uid,
            gid=caller.gid,
            grant=str(method.grant),
            device=device,
        )

    def _rules_of(self, caller: Caller) -> tuple[AccessRule, ...]:
        key = caller.uid, caller.gid
        found = self._known.get(key)
        if found is None:
            groups = self._groups_of(*key)
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            found = self._known[key] = tuple(
                resolved.rule
                for resolved in self._rules
                if caller.uid in resolved.users or not resolved.groups.isdisjoint(groups)
            )
        return found

    def _groups_of(self, uid: int, gid: int) -> set[int]:
        if not self._groups:
            return set()
        try:
            user = pwd.getpwuid(uid)
            return {gid, *os.getgrouplist(user.pw_name, user.pw_gid)}
        except (KeyError, OSError, ValueError):
            return {gid}  # A user without a name has only its primary group.


def _ids(found: Iterable[int | None]) -> frozenset[int]:
    return frozenset(number for number in found if number is not None)
