"""Commands to and from bytes: what a command is, how one is declared, and the table of all.

The commands themselves are in `vgpud.gpu.wire.commands`; importing it fills the table. Every
command is decoded (tens of thousands a second), so there is a table by type, and for each class a
function that makes it, instead of a chain of cases.

Specification: virtio 1.3, 5.7.6.7 to 5.7.6.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, fields
from struct import Struct
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import numpy as np

from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.wire.header import HEADER_SIZE, Box, Bytes, Header, Rect, decode_header
from vgpud.gpu.wire.mem_entries import MEM_ENTRY, MemEntries, mem_entries
from vgpud.gpu.wire.protocol import CommandType

Values: TypeAlias = tuple[Any, ...]
"""What struct unpacks and packs: ints, and CTX_CREATE's debug name."""

MOST_COPIED: Final = 256 << 10
"""Bytes of entries that are copied out of a request, in a fraction of a millisecond at most."""

_Build: TypeAlias = "Callable[[Header, Values, Bytes], Command]"


class Command:
    """The base of all commands, whose first field is `header`; `command` sets the class variables.

    `layout` is the struct after the header, `end` the bytes of both, and `build` makes a command of
    its header, the values of its struct and the whole request.

    A command whose fields are not the numbers of its struct has a class method `unpack`, which is
    its `build`, and overrides `values`; one that brings more than its struct overrides `tail`.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    __match_args__: ClassVar[tuple[str, ...]]

    command_type: ClassVar[CommandType]
    layout: ClassVar[Struct]
    end: ClassVar[int]
    build: ClassVar[_Build]

    header: Header

    def values(self) -> Values:
        """Return the values of the struct."""
        values: list[Any] = []
        for name in self.__match_args__[1:]:
            match getattr(self, name):
                case (Rect() | Box()) as shape:
                    values += astuple(shape)
                case tuple() as array:
                    values += array
                case number:
                    values.append(number)
        return tuple(values)

    def tail(self) -> bytes:
        """Return what follows the struct."""
        return b""


class CommandWithEntries(Command):
    """A command that brings memory entries, its last field, after its struct."""

    __slots__ = ()

    entries: MemEntries

    def __eq__(self, other: object) -> bool:
        """Compare by value; an array's own equality has no single answer."""
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._scalars() == other._scalars() and np.array_equal(self.entries, other.entries)

    def __hash__(self) -> int:
        """Hash what equality compares."""
        return hash((self._scalars(), self.entries.tobytes()))

    def _scalars(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__[:-1])

    def tail(self) -> bytes:
        """Return the entries."""
        return self.entries.tobytes()

    @classmethod
    def entries_after(cls, request: Bytes, count: int) -> MemEntries:
        """Return a copy of the entries of a request, or a view of many; a copy of the request, if
        it could change between check and use.

        A view keeps all of the request, which may be much longer (`bytes_kept` of `mem_entries`).
        Raises `InvalidParameter` if it brings fewer than it counts.
        """
        room = (len(request) - cls.end) // MEM_ENTRY.itemsize
        if count > room:
            raise InvalidParameter(
                f"{cls.command_type.name}: {count} memory entries counted, {room} brought"
            )
        if not isinstance(request, bytes):
            request = bytes(request)
        size = MEM_ENTRY.itemsize * count
        if size <= MOST_COPIED:
            part = request[cls.end : cls.end + size]
            return np.frombuffer(part, MEM_ENTRY) if part else mem_entries()
        return np.frombuffer(request, MEM_ENTRY, count, cls.end)


_C = TypeVar("_C", bound=Command)

COMMANDS: Final[dict[int, type[Command]]] = {}
"""The class of each command that has been declared, by its type on the wire."""


def command(
    command_type: CommandType, layout: str = "", *, shape: type[Rect | Box] | None = None
) -> Callable[[type[_C]], type[_C]]:
    """Declare a dataclass to be a command; `layout` is the format of its struct after the header.

    `shape`: its first field after the header is a rectangle or a box, which `layout` leaves out.
    Raises ValueError if there is a command of this type.
    """

    def declare(cls: type[_C]) -> type[_C]:
        if command_type in COMMANDS:
            raise ValueError(f"{command_type.name} is declared twice")
        cls.command_type = command_type
        cls.layout = Struct(f"<{len(fields(shape))}I{layout}" if shape else f"<{layout}")
        cls.end = HEADER_SIZE + cls.layout.size
        cls.build = getattr(cls, "unpack", None) or _build_of(cls, shape)
        COMMANDS[command_type] = cls
        return cls

    return declare


def decode(request: Bytes) -> Command:
    """Decode one request of the control or cursor queue; bytes after the struct are ignored.

    Raises `Unspecified` if the request is short or of no known type, `InvalidParameter` if it
    counts more entries or bytes than it brings.
    """
    header = decode_header(request)
    if header is None:
        raise Unspecified(f"request of {len(request)} bytes, a header is {HEADER_SIZE}")
    return decode_body(header, request)


def decode_body(header: Header, request: Bytes) -> Command:
    """Decode a request whose header has been read already; as `decode` otherwise."""
    cls = COMMANDS.get(header.type)
    if cls is None:
        raise Unspecified(f"unknown command {header.type:#06x}")
    if len(request) < cls.end:
        raise Unspecified(
            f"{cls.command_type.name}: request of {len(request)} bytes, the struct is {cls.end}"
        )
    return cls.build(header, cls.layout.unpack_from(request, HEADER_SIZE), request)


def encode(command: Command) -> bytes:
    """Encode a command as a driver would.

    Raises ValueError if its header is of another command's type, or a debug name is too long.
    """
    if command.header.type != command.command_type:
        raise ValueError(f"{type(command).__name__} with a header of type {command.header.type:#x}")
    return command.header.pack() + command.layout.pack(*command.values()) + command.tail()


def _build_of(cls: type[Command], shape: type[Rect | Box] | None) -> _Build:
    """Return a function that makes a command whose fields are numbers, but for the first."""
    make: Callable[..., Command] = cls

    def build(header: Header, values: Values, _request: Bytes) -> Command:
        return make(header, *values)

    if shape is None:
        return build
    count = len(fields(shape))

    def build_with_shape(header: Header, values: Values, _request: Bytes) -> Command:
        return make(header, shape(*values[:count]), *values[count:])

    def build_with_rect(header: Header, values: Values, _request: Bytes) -> Command:
        x, y, width, height, first, second = values  # two slices less
        return make(header, Rect(x, y, width, height), first, second)

    def build_with_rect_only(header: Header, values: Values, _request: Bytes) -> Command:
        x, y, width, height, only = values
        return make(header, Rect(x, y, width, height), only)

    numbers = len(cls.__match_args__) - 2  # neither the header nor the shape
    quick = {1: build_with_rect_only, 2: build_with_rect} if shape is Rect else {}
    return quick.get(numbers, build_with_shape)
