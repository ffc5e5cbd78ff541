"""The one ioctl() of vgpud.

Owns the call and the way from errno to a typed error; what a request means, and what helps when it
fails, is told by the module that makes it. Source: ioctl(2).
"""

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
    """Return what the call returned; `argument` is a cffi pointer, or an int passed by value.

    Raises HostError that says `name`, the system's own words, and the remedy for that errno if
    there is one. Not repeated on EINTR: for KVM_RUN that is an answer.
    """
    if isinstance(argument, int):
        argument = ffi.cast(_VOID, argument)
    result: int = lib.vgpud_ioctl(fd, request, argument)
    if result < 0:
        number: int = ffi.errno
        error = OSError(number, os.strerror(number))
        raise HostError(name, error, remedies.get(number, "")) from error
    return result
