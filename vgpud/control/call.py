"""What a method of the control API is to the server: a function of checked parameters and a caller.

The methods themselves are in `daemon.methods`, the server in `control.server`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel

from vgpud.control.models import ErrorKind
from vgpud.control.rpc import ErrorCode, RpcError
from vgpud.publish import Json
from vgpud.unix.fd import Fd

Address: TypeAlias = str | bytes
"""What a client's socket is bound to."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a datagram, with the credentials that the kernel vouches for (SCM_CREDENTIALS)."""

    address: Address
    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A result with a descriptor, which the server closes once it is sent or can't be."""

    value: BaseModel
    fd: Fd


Result: TypeAlias = BaseModel | Reply
Handler: TypeAlias = Callable[[Any, Caller], Result | Awaitable[Result]]
"""Called with an instance of the method's `params` model. One that has to wait returns an
awaitable, and others are served meanwhile. Raises RpcError, or VgpudError, which is answered by its
kind."""
Handlers: TypeAlias = Mapping[str, Handler]


def refused(kind: ErrorKind, message: str, **data: Json) -> RpcError:
    """Return an error of ours, code -32000."""
    return RpcError(ErrorCode.VGPUD, message, {"kind": str(kind), **data})
