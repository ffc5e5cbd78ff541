"""The twelve bytes before every vhost-user payload, in either direction and on either channel.

It has the layout only; `connection` and `back_end_channel` check headers.
Source: vhost-user.rst, "Header".
"""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.vhost.wire.protocol import HEADER, FrontEndRequest


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """The twelve bytes before every payload, unchecked."""

    request: int
    flags: int
    size: int


def encode_header(header: MessageHeader) -> bytes:
    """Return the twelve bytes of `header`."""
    return HEADER.pack(header.request, header.flags, header.size)


def decode_header(data: bytes | bytearray | memoryview) -> MessageHeader:
    """Return the header in the first twelve bytes of `data`, which must have as many."""
    return MessageHeader(*HEADER.unpack_from(data))


def named(request: FrontEndRequest) -> str:
    """Return what a request is called in errors and logs: its name, and its id as in traces."""
    return f"{request.name} ({request.value})"
