"""The exception tree: who is at fault decides which one is raised, and which seam catches it.

Anything that is not a `VgpudError` is a bug in vgpud and propagates.
"""

from __future__ import annotations

import os


class VgpudError(Exception):
    """The root of every error that vgpud raises on purpose."""


class ConfigError(VgpudError):
    """The operator's file, option or environment is wrong; the message says what to change."""


class PeerError(VgpudError):
    """A front-end broke the vhost-user or display protocol; its session ends, the daemon goes
    on."""


class RingError(VgpudError):
    """A guest's virtqueue is malformed; that queue stops, the session goes on."""


class OutOfRange(VgpudError):  # noqa: N818
    """A range, rectangle or address does not lie in what it was said to be in."""


class OutOfMemory(VgpudError):  # noqa: N818
    """There is no memory left for this: the limit of the device, or the host's own."""


class Unsupported(VgpudError):  # noqa: N818
    """What was asked for can't be had here, or the policy says to refuse it."""


class HostError(VgpudError):
    """The host refused an operation: which one, the system's own words, and what to do about it."""

    def __init__(self, operation: str, error: OSError, advice: str = "") -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{operation}: {reason}" + (f"; {advice}" if advice else ""))
        self.operation = operation
        self.errno = error.errno
        self.advice = advice


class AllocationError(HostError, OutOfMemory):
    """The host has no memory for a buffer, or no file or mapping: why is the `HostError` that it is
    made from."""

    def __init__(self, reason: HostError) -> None:
        VgpudError.__init__(self, str(reason))
        self.operation = reason.operation
        self.errno = reason.errno
        self.advice = reason.advice


class Interrupted(VgpudError):  # noqa: N818
    """An operation can't be begun or finished, as the front-end has gone or the device was
    reset."""


class GuestAddressError(OutOfRange):
    """A guest-physical or front-end virtual range is not (wholly) in the memory that was shared
    with us."""
