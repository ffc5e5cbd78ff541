"""Users and groups by the names that the system's databases have, nsswitch.conf(5)."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from typing import Final

from vgpud.unix.file_names import file_name

MAX_ID: Final = (1 << 32) - 2
"""The highest number of a user or group: the kernel has one more for "none"."""


def user_id(name: str) -> int | None:
    """Return the number of a user, whose name may be a number; None if there is no such user."""
    return _id(name, lambda found: pwd.getpwnam(found).pw_uid)


def group_id(name: str) -> int | None:
    """Return the number of a group, as `user_id` does that of a user."""
    return _id(name, lambda found: grp.getgrnam(found).gr_gid)


def is_number(name: str) -> bool:
    """Return whether a name of a user or group is a number."""
    return name.isascii() and name.isdecimal()


def number_of(name: str) -> int | None:
    """Return the number that a name is, or None if there is no user or group of that number."""
    digits = name.lstrip("0") or "0"
    # By length first, as Python refuses to read thousands of digits.
    if len(digits) > len(str(MAX_ID)) or int(digits) > MAX_ID:
        return None
    return int(digits)


def _id(name: str, look_up: Callable[[str], int]) -> int | None:
    if is_number(name):
        return number_of(name)
    try:
        # The databases are in UTF-8, as the configuration is, whatever this process's locale.
        return look_up(file_name(name))
    except (KeyError, OSError, ValueError):
        return None
