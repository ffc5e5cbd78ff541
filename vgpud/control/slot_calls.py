"""The JSON-RPC calls that the daemon makes of a slot agent: names, parameters and errors.

`control.rpc` has the envelope. The memory file comes with the call, as the one descriptor of its
datagram.

An agent that answers with an error has changed nothing. The error's `data` is
{"kind": "host", "errno": N} with the errno of the agent's kernel, or one of these: EEXIST for a
slot that exists already, ENOENT for one that does not exist, EPERM for what the VMM does not allow.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from vgpud.control.rpc import RpcError
from vgpud.publish import Json

SLOT_SET: Final = "slot.set"
SLOT_DELETE: Final = "slot.delete"
AGENT_ATTACH: Final = "agent.attach"
AGENT_DETACH: Final = "agent.detach"
"""The calls that an agent makes of the daemon; their parameters are in `control.params`."""

PROT_READ: Final = 1
PROT_WRITE: Final = 2
"""The protection of a memory file's mapping, with the values of mmap(2)."""

_MAX_ERRNO: Final = 4096
_MAX_MESSAGE: Final = 300
"""Characters. An agent's message ends up in the log and in events."""

MAX_SLOTS: Final = 1 << 16
"""The limit of slot numbers: the upper half of the 32 bits is the address space's number."""

SlotNumber = Annotated[int, Field(ge=0, lt=MAX_SLOTS)]
SlotFlags = Annotated[int, Field(ge=0, lt=1 << 32)]
GuestAddress = Annotated[int, Field(ge=0, lt=1 << 64)]
FileOffset = Annotated[int, Field(ge=0, lt=1 << 63)]  # off_t
FileSize = Annotated[int, Field(gt=0, lt=1 << 63)]


class _Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SlotSet(_Params):
    """The slot, which does not exist yet: `memory_size` bytes from `fd_offset` of the file on."""

    slot: SlotNumber
    flags: SlotFlags
    guest_phys_addr: GuestAddress
    memory_size: FileSize
    fd_offset: FileOffset
    prot: Annotated[int, Field(ge=0, le=PROT_READ | PROT_WRITE)]


class SlotDelete(_Params):
    """The slot, whose memory is released."""

    slot: SlotNumber


def errno_of(error: RpcError) -> int | None:
    """Return the kernel's errno in an agent's error, or None if it has none."""
    match error.data:
        case {"errno": int(number)} if 0 < number < _MAX_ERRNO:
            return number
    return None


def printable_message(error: RpcError) -> str:
    """Return an agent's error message as part of a line: cut to a limit, with escapes."""
    text = error.message
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE - 3]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def error_data(number: int) -> Json:
    """Return the `data` of an agent's error with this errno."""
    return {"kind": "host", "errno": number}
