"""`vgpud serve` for benches that measure the whole daemon; the process is `microvm.service`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

from vgpud.coherency.slot_policy import Layout
from vgpud.microvm.service import Service

_ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
"""The environment that keeps bytecode, because an installed package has it."""


class ServeProcess(Service):
    """A daemon with a device for each of `layouts`, whose name is the layout's.

    Its directory is created in `parent`, by default tempfile's directory. Raises as `Service`.
    """

    def __init__(
        self,
        layouts: Sequence[Layout] = (Layout.WINDOW,),
        *,
        guest_pat: str = "honored",
        parent: str | None = None,
    ) -> None:
        config = "".join(_devices(layouts, guest_pat))
        super().__init__(config, parent=parent, environment=_ENVIRONMENT)

    def cpu_s(self) -> float:
        """Return the seconds of processor time that the daemon has used."""
        # The clock id of clock_getcpuclockid(3): the kernel's CPUCLOCK_SCHED of the whole process.
        return time.clock_gettime(~self.pid << 3 | 2)


def _devices(layouts: Sequence[Layout], guest_pat: str) -> Iterator[str]:
    for layout in layouts:
        yield (
            f'\n[[device]]\nname = "{layout}"\nguest_pat = "{guest_pat}"\n'
            f'\n[[slot_policy]]\nmatch = {{ device = "{layout}" }}\nlayout = "{layout}"\n'
        )
