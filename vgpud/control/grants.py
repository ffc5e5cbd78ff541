"""The grants of the control API, and the rules that give them to users and groups."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AccessGrant(StrEnum):
    """What a caller may do: see states, events and pictures; change them; or take memory.

    MEMORY lets a caller read and write what a guest maps: exports, blobs of its own, slot agents.
    """

    OBSERVE = "observe"
    CHANGE = "change"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class AccessRule:
    """The grants of users and groups, by names or numbers, for one device.

    With None as `device`, they are for all devices and for the daemon itself. `prefix` is that of
    the keys in the configuration: `allow` for `allow_users`.
    """

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    grants: frozenset[AccessGrant] = frozenset(AccessGrant)
    device: str | None = None
    prefix: str = "allow"

    @property
    def table(self) -> str:
        """The table of the configuration that has the rule."""
        return "[daemon]" if self.device is None else f"[[device]] {self.device}"
