"""The exceptions of vgpud. The party at fault decides which one is raised, and where it is caught.

Anything that is not a `VgpudError` is a bug in vgpud and propagates.
"""

from __future__ import annotations

import os
from typing import TypeVar


class VgpudError(Exception):
    """The root of every error that vgpud raises on purpose."""


_E = TypeVar("_E", bound=BaseException)


def stored(error: _E) -> _E:
    """Return an error without tracebacks, for a variable, an attribute or another thread.

    A traceback keeps the frames that it came through, and with them buffers; and where one of these
    frames refers to the error, only the garbage collector frees all of it. An error that is stored
    loses its traceback, and those of the errors that it came of.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        left += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
    return error


class ConfigError(VgpudError):
    """The operator's file, option or environment is wrong; the message says what to change."""


class PeerError(VgpudError):
    """A peer broke a protocol, such as vhost-user. Its session ends, the daemon continues."""


class PeerGone(PeerError):  # noqa: N818
    """A peer has closed its end of a connection. That is a regular end, also of a busy one."""


class RingError(VgpudError):
    """A guest's virtqueue is malformed. That queue stops, the session continues."""


class OutOfRange(VgpudError):  # noqa: N818
    """A range, rectangle or address is not within the object that it refers to."""


class OutOfMemory(VgpudError):  # noqa: N818
    """No memory is left: the device has reached its limit, or the host its own."""


class Unsupported(VgpudError):  # noqa: N818
    """A request is not supported on this host or device, or the policy refuses it."""


class HostError(VgpudError):
    """The host refused an operation. The message has the operation, the error and advice."""

    def __init__(self, operation: str, error: OSError, advice: str = "") -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{operation}: {reason}" + (f"; {advice}" if advice else ""))
        self.operation = operation
        self.errno = error.errno
        self.advice = advice


class AllocationError(HostError, OutOfMemory):
    """The host has no memory, file or mapping for a buffer; `reason` says which.

    It has the message and the fields of `reason`.
    """

    def __init__(self, reason: HostError) -> None:
        VgpudError.__init__(self, str(reason))
        self.operation = reason.operation
        self.errno = reason.errno
        self.advice = reason.advice


class Interrupted(VgpudError):  # noqa: N818
    """An operation can't begin or finish: the front-end has gone, or the device was reset."""


class GuestAddressError(OutOfRange):
    """A guest-physical or front-end virtual range is not, or not wholly, in the memory table."""
