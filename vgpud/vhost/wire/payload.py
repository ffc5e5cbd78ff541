"""Values that travel as the payload of a message, packed as their class says.

Source: vhost-user.rst, "Payload". Every number is in the machine's byte order.
"""

from __future__ import annotations

from struct import Struct
from typing import ClassVar, Self


class Payload:
    """The base of all messages and replies, which are frozen dataclasses.

    `layout` packs the fields in their order. A class whose fields are not the layout's numbers
    overrides `pack` and `unpack`, and one whose size varies overrides `can_have`.
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    layout: ClassVar[Struct] = Struct("=")

    @classmethod
    def can_have(cls, size: int) -> bool:
        """Return whether a payload of `size` bytes can be one of this class."""
        return size == cls.layout.size

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload, of a size that the class can have.

        Raises `PeerError` for a field that has no meaning.
        """
        return cls(*cls.layout.unpack(payload))

    def pack(self) -> bytes:
        """Return the payload of this value."""
        return self.layout.pack(*(getattr(self, name) for name in self.__match_args__))
