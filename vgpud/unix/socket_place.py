"""Where a listening socket is to be: its path, its permissions, and its group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vgpud.errors import ConfigError
from vgpud.unix.accounts import group_id

SOCKET_MODE: Final = 0o660


@dataclass(frozen=True, slots=True)
class SocketPlace:
    """The file of a listening socket: its path, its permissions, and its group.

    A group is a name or a number; None is the group of this process. `gid` is its number, once it
    was looked up.
    """

    path: Path
    mode: int = SOCKET_MODE
    group: str | None = None
    gid: int | None = None

    def looked_up(self) -> SocketPlace:
        """Return this with the group's number; a look-up may take long.

        Raises ConfigError if there is no such group.
        """
        return replace(self, gid=_gid(self))


def _gid(place: SocketPlace) -> int | None:
    if place.group is None or place.gid is not None:
        return place.gid
    if (found := group_id(place.group)) is None:
        raise ConfigError(f"{place.path}: socket_group = {place.group!r}: there is no such group")
    return found
