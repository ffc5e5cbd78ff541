"""What takes its time: an answer to be waited for, and work for the executor in steps.

Owns no thread and no order; `gpu.executor` runs the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from vgpud.errors import VgpudError
from vgpud.gpu.quota import Charge
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.wire.responses import Response

Answer: TypeAlias = Response | Coroutine[Any, Any, Response]
"""A response, or a coroutine that has it in the end. No other command of its queue is executed
meanwhile, and cancelled in the middle it can be executed again."""

Done: TypeAlias = Callable[[VgpudError | None], None]
"""What is called when something is done, with the error that it has ended with, or None."""


@dataclass(slots=True)
class Traffic:
    """Bytes that steps have moved: `read` and `written` past the caches, `snooped` through them."""

    read: int = 0
    written: int = 0
    snooped: int = 0


@dataclass(slots=True, eq=False)
class Work:
    """`steps`, to be run one after the other on any thread, but not at the same time.

    Each takes a fraction of a millisecond: between two of them work can be halted and gone on with.
    Every range was checked when the work was made, and the buffers in it stay mapped for as long as
    it lives. `resources` are those that the steps touch; `cost` is about how many bytes they move.
    `refusal` is what the command is answered with after all steps have run, where the packet behind
    them was bad. `charge` is to be released when the work is done or dropped.
    """

    steps: Iterator[None]
    resources: frozenset[ResourceId]
    cost: int
    refusal: VgpudError | None = None
    charge: Charge | None = None
