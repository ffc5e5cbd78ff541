"""Access control of the control socket: users and groups by name, callers by their credentials.

Names and group memberships are looked up in the databases of nsswitch.conf(5). A look-up may be
slow, so its result is cached. Source: unix(7), SCM_CREDENTIALS.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
from collections.abc import Callable, Iterable
from typing import Final

from vgpud.control.call import Caller, refused
from vgpud.control.models import ErrorKind
from vgpud.control.rpc import RpcError

_log = logging.getLogger(__name__)

_MAX_REMEMBERED: Final = 1024
"""Users. Any user of the system may send a datagram and be looked up, so the cache has a limit."""


class AccessList:
    """The callers that are allowed: the daemon's user, `allow_users`, members of `allow_groups`.

    A group's members are those in the group database, and processes that have it as their primary
    group. A process's supplementary groups are not in its credentials, so they don't count.
    """

    def __init__(self, allow_users: Iterable[str] = (), allow_groups: Iterable[str] = ()) -> None:
        self._users = _ids("allow_users", allow_users, lambda name: pwd.getpwnam(name).pw_uid)
        self._groups = _ids("allow_groups", allow_groups, lambda name: grp.getgrnam(name).gr_gid)
        self._users.add(os.geteuid())
        self._known: dict[tuple[int, int], bool] = {}

    def allows(self, caller: Caller) -> bool:
        """Return whether the caller may call methods."""
        key = caller.uid, caller.gid
        if key not in self._known:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = caller.uid in self._users or self._in_group(*key)
        return self._known[key]

    def refusal(self, caller: Caller) -> RpcError:
        """Return the error for a caller that is not allowed."""
        return refused(
            ErrorKind.NOT_ALLOWED,
            f"uid {caller.uid} gid {caller.gid} may not use this socket; the daemon's config says"
            " who may, in daemon.allow_users and daemon.allow_groups",
            uid=caller.uid,
            gid=caller.gid,
        )

    def _in_group(self, uid: int, gid: int) -> bool:
        if gid in self._groups:
            return True
        if not self._groups:
            return False
        try:
            user = pwd.getpwuid(uid)
            return not self._groups.isdisjoint(os.getgrouplist(user.pw_name, user.pw_gid))
        except (KeyError, OSError):
            return False  # A user without a name has only its primary group.


def _ids(option: str, names: Iterable[str], look_up: Callable[[str], int]) -> set[int]:
    found = set()
    for name in names:
        try:
            found.add(int(name) if name.isdecimal() else look_up(name))
        except (KeyError, OSError, ValueError):
            _log.warning("unknown name in daemon.%s name=%r: it is ignored", option, name)
    return found
