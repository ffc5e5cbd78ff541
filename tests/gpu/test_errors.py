"""Which response code a guest gets for an error."""

from __future__ import annotations

import errno

import pytest

from vgpud import errors
from vgpud.gpu import errors as gpu_errors
from vgpud.gpu.errors import response_code
from vgpud.gpu.wire.protocol import ResponseType

_REFUSED = errors.HostError("mmap", OSError(errno.ENOMEM, ""), "add memory")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (gpu_errors.Unspecified("x"), 0x1200),
        (errors.Unsupported("x"), 0x1200),
        (errors.Interrupted("x"), 0x1200),
        (_REFUSED, 0x1200),
        (errors.OutOfMemory("x"), 0x1201),
        (errors.AllocationError(_REFUSED), 0x1201),
        (gpu_errors.InvalidScanoutId("x"), 0x1202),
        (gpu_errors.InvalidResourceId("x"), 0x1203),
        (gpu_errors.InvalidContextId("x"), 0x1204),
        (gpu_errors.InvalidParameter("x"), 0x1205),
        (errors.OutOfRange("x"), 0x1205),
        (errors.GuestAddressError("x"), 0x1205),
    ],
)
def test_every_error_of_a_command_has_its_code(error: errors.VgpudError, code: int) -> None:
    assert response_code(error) == code


def test_every_code_is_given() -> None:
    errors_of_the_protocol = {code for code in ResponseType if code >= ResponseType.ERR_UNSPEC}
    assert {*gpu_errors._CODES.values()} == errors_of_the_protocol


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.PeerError, errors.RingError])
def test_what_is_no_answer_to_a_command_has_no_code(kind: type[errors.VgpudError]) -> None:
    with pytest.raises(KeyError):
        response_code(kind("x"))


def test_an_allocation_error_says_what_the_host_said() -> None:
    error = errors.AllocationError(_REFUSED)
    assert str(error) == str(_REFUSED)
    assert (error.operation, error.errno, error.advice) == ("mmap", errno.ENOMEM, "add memory")
