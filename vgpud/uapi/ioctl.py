"""The one ioctl() of vgpud, which turns an errno into a HostError with advice. Source: ioctl(2)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from vgpud.errors import HostError
from vgpud.uapi._linux import ffi, lib

Remedies = Mapping[int, str]
"""Advice by errno."""

NO_REMEDIES: Final[Remedies] = MappingProxyType({})

_VOID = ffi.typeof("void *")


def ioctl(
    fd: int, request: int, argument: Any = 0, *, name: str, remedies: Remedies = NO_REMEDIES
) -> int:
    """Make an ioctl and return its result; `argument` is a cffi pointer, or an int by value.

    Raises HostError with `name`, the system's error message, and the remedy for that errno if there
    is one. The call is not repeated on EINTR, which has a meaning for KVM_RUN.
    """
    if isinstance(argument, int):
        argument = ffi.cast(_VOID, argument)
    result: int = lib.vgpud_ioctl(fd, request, argument)
    if result < 0:
        number: int = ffi.errno
        error = OSError(number, os.strerror(number))
        raise HostError(name, error, remedies.get(number, "")) from error
    return result
