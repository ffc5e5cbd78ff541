"""What a daemon asks a slot agent, and what comes back: the JSON-RPC methods of slots.

Owns names and parameters; `control.rpc` has the envelope, and the memory file rides on the call as
the one descriptor of its datagram.

An agent that answers with an error has changed nothing. Its `data` is {"kind": "host", "errno": N}
with its kernel's errno, or the one of these that says what was wrong: EEXIST for a slot that is
there already, ENOENT for one that is not, EPERM for what the VMM lets no daemon do.
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
"""The agent's own calls; their parameters are in `control.params`."""

PROT_READ: Final = 1
PROT_WRITE: Final = 2
"""What the memory file is mapped for, as mmap(2) has it."""

_MAX_ERRNO: Final = 4096
_MAX_WORDS: Final = 300
"""Characters. What an agent says ends up in a log and in events."""

MAX_SLOTS: Final = 1 << 16
"""What slot numbers are below: the upper half of the 32 bits names an address space."""

SlotNumber = Annotated[int, Field(ge=0, lt=MAX_SLOTS)]
SlotFlags = Annotated[int, Field(ge=0, lt=1 << 32)]
GuestAddress = Annotated[int, Field(ge=0, lt=1 << 64)]
FileOffset = Annotated[int, Field(ge=0, lt=1 << 63)]  # off_t
FileSize = Annotated[int, Field(gt=0, lt=1 << 63)]


class _Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SlotSet(_Params):
    """Register a slot that is not there yet: `memory_size` bytes from `fd_offset` of the file."""

    slot: SlotNumber
    flags: SlotFlags
    guest_phys_addr: GuestAddress
    memory_size: FileSize
    fd_offset: FileOffset
    prot: Annotated[int, Field(ge=0, le=PROT_READ | PROT_WRITE)]


class SlotDelete(_Params):
    """Take a slot away, and let go of its memory."""

    slot: SlotNumber


def errno_of(error: RpcError) -> int | None:
    """The kernel's errno in an agent's error, if it tells one."""
    match error.data:
        case {"errno": int(number)} if 0 < number < _MAX_ERRNO:
            return number
    return None


def words_of(error: RpcError) -> str:
    """What an agent's error says, as part of a line: cut, and nothing in it that is not printed."""
    words = error.message
    if len(words) > _MAX_WORDS:
        words = f"{words[: _MAX_WORDS - 3]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


def error_data(number: int) -> Json:
    """`data` of an agent's error."""
    return {"kind": "host", "errno": number}
