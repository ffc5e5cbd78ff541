"""The errors of a guest's commands, and the response code of each.

The parts of the device raise these or the errors of `vgpud.errors`, without codes. Source: virtio
1.3, 5.7.6.7 "Device Operation: Command lifecycle", the VIRTIO_GPU_RESP_ERR_* codes.
"""

from __future__ import annotations

from typing import Final

from vgpud.errors import (
    AllocationError,
    HostError,
    Interrupted,
    OutOfMemory,
    OutOfRange,
    Unsupported,
    VgpudError,
)
from vgpud.gpu.wire.protocol import ResponseType


class Unspecified(VgpudError):  # noqa: N818
    """A command failed for a reason that has no code of its own."""


class InvalidParameter(VgpudError):  # noqa: N818
    """A field of a command has an invalid value."""


class InvalidResourceId(VgpudError):  # noqa: N818
    """There is no resource of this id, or a new one can't have it."""


class InvalidContextId(VgpudError):  # noqa: N818
    """There is no context of this id, or a new one can't have it."""


class InvalidScanoutId(VgpudError):  # noqa: N818
    """There is no output of this number."""


_CODES: Final[dict[type[VgpudError], ResponseType]] = {
    Unspecified: ResponseType.ERR_UNSPEC,
    Unsupported: ResponseType.ERR_UNSPEC,
    HostError: ResponseType.ERR_UNSPEC,
    Interrupted: ResponseType.ERR_UNSPEC,
    OutOfMemory: ResponseType.ERR_OUT_OF_MEMORY,
    AllocationError: ResponseType.ERR_OUT_OF_MEMORY,  # also a HostError, but nearer in the MRO
    InvalidParameter: ResponseType.ERR_INVALID_PARAMETER,
    OutOfRange: ResponseType.ERR_INVALID_PARAMETER,
    InvalidResourceId: ResponseType.ERR_INVALID_RESOURCE_ID,
    InvalidContextId: ResponseType.ERR_INVALID_CONTEXT_ID,
    InvalidScanoutId: ResponseType.ERR_INVALID_SCANOUT_ID,
}


def response_code(error: VgpudError) -> ResponseType:
    """Return the response code for an error of a command.

    Raises `KeyError` for an error that has no code, such as a `ConfigError`.
    """
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    raise KeyError(type(error))
