"""The interface between the control server and its methods: handlers, callers and results.

The handlers are in `daemon.methods`, the server is in `control.server`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel

from vgpud.control.models import ErrorKind
from vgpud.control.rpc import ErrorCode, RpcError
from vgpud.publish import Json
from vgpud.unix.fd import Fd

Address: TypeAlias = str | bytes
"""The address that a client's socket is bound to, as the client's process names it."""


def _everything(device: str | None) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a datagram, with the credentials that the kernel checked (SCM_CREDENTIALS).

    `address` is the sender's word, and another user's socket may have the same: what is kept for a
    caller is kept by the whole `Caller`. It is empty if the caller can't be answered. `file` is the
    file of its socket, opened for its path only, which belongs to the caller's user: a path is
    answered there and nowhere else (`control.caller_sockets`). `observes` returns whether it may
    observe a device, or with None all of them and the daemon: the control server sets it, and
    listings have only what the caller may observe.
    """

    address: Address
    pid: int
    uid: int
    gid: int
    observes: Callable[[str | None], bool] = field(default=_everything, compare=False, repr=False)
    file: Fd | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A result with a descriptor. The server closes it after it was sent, or can't be sent."""

    value: BaseModel
    fd: Fd


Result: TypeAlias = BaseModel | Reply
Handler: TypeAlias = Callable[[Any, Caller], Result | Awaitable[Result]]
"""A function that is called with an instance of the method's `params` model. A handler that has to
wait returns an awaitable, and other calls are served meanwhile. It may raise RpcError, or another
VgpudError, which is translated to one."""
Handlers: TypeAlias = Mapping[str, Handler]


def refused(kind: ErrorKind, message: str, **data: Json) -> RpcError:
    """Return an error with vgpud's own code, -32000, and its kind in `data.kind`."""
    return RpcError(ErrorCode.VGPUD, message, {"kind": str(kind), **data})
