"""Signals to eventfds that another process shares: the facade of eventfd.c."""

from __future__ import annotations

import os

from vgpud.native._native import lib

_SIGNAL = lib.vgpud_eventfd_signal


def signal(fd: int) -> None:
    """Add one to the count of an eventfd, and never wait; a full count stays full.

    Raises OSError, with EINVAL for a file that is no eventfd.
    """
    error: int = _SIGNAL(fd)
    if error:
        raise OSError(-error, os.strerror(-error))
