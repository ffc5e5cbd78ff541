"""Work that takes its time: what a SUBMIT_3D becomes, before anything of it has run.

Owns no thread and no order; `serve` runs the steps. Every range was checked when the work was made,
and the buffers in it stay mapped for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vgpud.errors import GuestError
from vgpud.wire.gpu.protocol import ResourceId


@dataclass(frozen=True, slots=True)
class Work:
    """Steps to run one after the other, on any thread, but not at the same time.

    `resources` are those that the steps touch; `cost` is about how many bytes they move. `refusal`
    is what the command is answered with after all steps have run, where the packet behind them was
    bad.
    """

    steps: tuple[Callable[[], None], ...]
    resources: frozenset[ResourceId]
    cost: int
    refusal: GuestError | None = None
