"""Users and groups by the names that the system's databases have, nsswitch.conf(5)."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator

from vgpud.control.grants import AccessRule


def user_id(name: str) -> int | None:
    """Return the number of a user, whose name may be a number; None if there is no such user."""
    return _id(name, lambda found: pwd.getpwnam(found).pw_uid)


def group_id(name: str) -> int | None:
    """Return the number of a group, as `user_id` does that of a user."""
    return _id(name, lambda found: grp.getgrnam(found).gr_gid)


def unknown(rule: AccessRule) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each user and group of a rule that the system does not know."""
    for kind, names, look_up in (("users", rule.users, user_id), ("groups", rule.groups, group_id)):
        for name in names:
            if look_up(name) is None:
                yield f"{rule.prefix}_{kind}", name


def _id(name: str, look_up: Callable[[str], int]) -> int | None:
    if name.isascii() and name.isdecimal():
        return int(name)
    try:
        # The databases are in UTF-8, as the configuration is, whatever this process's locale.
        return look_up(os.fsdecode(name.encode()))
    except (KeyError, OSError, ValueError):
        return None
