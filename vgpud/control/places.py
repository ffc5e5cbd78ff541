"""Places that callers take, with a limit for each user and a reserve for those who administer.

So a user that is allowed to look can't shut out others, nor root.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Places:
    """The numbers of places: in all, for each user, and those of them that are reserved.

    The reserve is for root and the daemon's own user, which have no limit of their own.
    """

    total: int
    each_user: int
    reserved: int

    def has_room(self, uid: int, taken: Mapping[int, int] | Iterable[int]) -> bool:
        """Return whether a user may take a place, where others have been taken by these users."""
        held = Counter(taken)
        all_held = held.total()
        if administers(uid):
            return all_held < self.total
        others = all_held - sum(held[each] for each in {0, os.geteuid()})
        return (
            held[uid] < self.each_user
            and others < self.total - self.reserved
            and all_held < self.total
        )


def administers(uid: int) -> bool:
    """Return whether a user is root or the daemon's own."""
    return uid in {0, os.geteuid()}
