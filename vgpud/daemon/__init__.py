"""The daemon: its configuration, its devices, and the composition of the other packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgpud.daemon.daemon import Daemon as Daemon


def __getattr__(name: str) -> Any:
    # A program that only reads the configuration does not load the daemon.
    if name == "Daemon":
        from vgpud.daemon.daemon import Daemon  # noqa: PLC0415

        return Daemon
    raise AttributeError(name)
