"""Who may use the control socket: users and groups by name, callers by their credentials.

Owns the look-up of names and of group memberships, in whatever nsswitch.conf(5) names; it may take
a moment, hence it is done once. Source: unix(7), SCM_CREDENTIALS.
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
"""Users. Any user of the system may knock, and be looked up."""


class Access:
    """The daemon's own user, `allow_users`, and members of `allow_groups`.

    A group's members are those that the group database names, and whoever runs with it as their own
    group; what else a process was given as supplementary groups is not to be seen from here.
    """

    def __init__(self, allow_users: Iterable[str] = (), allow_groups: Iterable[str] = ()) -> None:
        self._users = _ids("allow_users", allow_users, lambda name: pwd.getpwnam(name).pw_uid)
        self._groups = _ids("allow_groups", allow_groups, lambda name: grp.getgrnam(name).gr_gid)
        self._users.add(os.geteuid())
        self._known: dict[tuple[int, int], bool] = {}

    def allows(self, caller: Caller) -> bool:
        """Whether the caller may call anything."""
        key = caller.uid, caller.gid
        if key not in self._known:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = caller.uid in self._users or self._in_group(*key)
        return self._known[key]

    def refusal(self, caller: Caller) -> RpcError:
        """What a caller that it does not allow is answered with."""
        return refused(
            ErrorKind.NOT_ALLOWED,
            f"uid {caller.uid} gid {caller.gid} may not use this socket; the daemon's config has"
            " who may: daemon.allow_users, daemon.allow_groups",
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
            return False  # A user without a name is in no group but its own.


def _ids(option: str, names: Iterable[str], look_up: Callable[[str], int]) -> set[int]:
    found = set()
    for name in names:
        try:
            found.add(int(name) if name.isdecimal() else look_up(name))
        except (KeyError, OSError, ValueError):
            _log.warning("unknown name in daemon.%s name=%r: it allows nobody", option, name)
    return found
