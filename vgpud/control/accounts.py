"""Users and groups that access rules name."""

from __future__ import annotations

from collections.abc import Iterator

from vgpud.control.grants import AccessRule
from vgpud.unix.accounts import group_id, user_id

__all__ = ["group_id", "unknown", "user_id"]


def unknown(rule: AccessRule) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each user and group of a rule that the system does not know."""
    for kind, names, look_up in (("users", rule.users, user_id), ("groups", rule.groups, group_id)):
        for name in names:
            if look_up(name) is None:
                yield f"{rule.prefix}_{kind}", name
