"""Access control of the control socket: who has which grants, for which devices.

Callers are known by their credentials. Names of users and groups, and group memberships, are looked
up in the databases of nsswitch.conf(5). A look-up may be slow, so its result is kept for a while.
Source: unix(7), SCM_CREDENTIALS.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic
from typing import Final

from vgpud.control.call import Caller, refused
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.control.methods import Method
from vgpud.control.models import ErrorKind
from vgpud.control.rpc import RpcError
from vgpud.unix.accounts import group_id, user_id

_log = logging.getLogger(__name__)

_MAX_REMEMBERED: Final = 1024
"""Users. Any user of the system may send a datagram and be looked up, so the cache has a limit."""
FRESH: Final = 60.0
"""Seconds after which a user's groups are looked up again: it may have been removed from one."""
FAILED: Final = 1.0
"""Seconds after which it is tried again if a user's groups could not be found."""
TRUSTED: Final = 600.0
"""Seconds for which groups count that can't be found again: a database may be restarted, and an
agent must not be detached for that."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    rule: AccessRule
    users: frozenset[int]
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Known:
    rules: tuple[AccessRule, ...]
    groups: frozenset[int]
    found_at: float  # when the groups were found last
    until: float  # when they are to be looked up again


class AccessList:
    """The grants by rules, which add up. The daemon's own user has all grants.

    A group's members are those in the group database, and processes that have it as their primary
    group. A process's supplementary groups are not in its credentials, so they don't count.
    """

    def __init__(self, *rules: AccessRule) -> None:
        self._own_user = os.geteuid()
        self._rules = [_resolved(rule) for rule in rules if rule.users or rule.groups]
        self._groups = frozenset[int]().union(*(resolved.groups for resolved in self._rules))
        self._known: OrderedDict[tuple[int, int], _Known] = OrderedDict()

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
        if not self._groups:
            return True
        known = self._known.get((caller.uid, caller.gid))
        return known is not None and monotonic() < known.until

    def look_up(self, caller: Caller) -> None:
        """Look the caller's groups up, in any thread, so that its grants are known.

        If that fails, what was known before counts for some more minutes.
        """
        key, now = (caller.uid, caller.gid), monotonic()
        groups, found_at = self._groups_of(*key), now
        if groups is None:
            until, former = now + FAILED, self._known.get(key)
            if former is not None and now < former.found_at + TRUSTED:
                groups, found_at = former.groups, former.found_at
            else:
                groups = frozenset({caller.gid})
        else:
            until = now + FRESH
        rules = tuple(
            resolved.rule
            for resolved in self._rules
            if caller.uid in resolved.users or not resolved.groups.isdisjoint(groups)
        )
        self._known[key] = _Known(rules, groups, found_at, until)
        self._known.move_to_end(key)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)

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
        """Return the rules for a caller: those that are known, however old, as others wait."""
        key = caller.uid, caller.gid
        known = self._known.get(key)
        if known is None:
            self.look_up(caller)
            known = self._known[key]
        return known.rules

    def _groups_of(self, uid: int, gid: int) -> frozenset[int] | None:
        """Return the groups of a user with this primary group, or None if they can't be found."""
        if not self._groups:
            return frozenset()
        try:
            user = pwd.getpwuid(uid)
            return frozenset({gid, *os.getgrouplist(user.pw_name, user.pw_gid)})
        except (KeyError, OSError, ValueError):
            return None  # A user without a name, or a database that is being restarted.


def _resolved(rule: AccessRule) -> _Resolved:
    """Look up the names of a rule, each once; those that are unknown are logged."""
    found = []
    for kind, names, look_up in (("users", rule.users, user_id), ("groups", rule.groups, group_id)):
        numbers = {name: look_up(name) for name in names}
        for name, number in numbers.items():
            if number is None:
                text = "unknown name in %s %s_%s name=%r: it is ignored"
                unlimited = {"vgpud_unlimited": True}
                _log.warning(text, rule.table, rule.prefix, kind, name, extra=unlimited)
        found.append(frozenset(number for number in numbers.values() if number is not None))
    return _Resolved(rule, *found)
