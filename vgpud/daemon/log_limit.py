"""The limit of log lines that guests, front-ends and clients can cause, for all lines alike.

Without it they could fill the disk. Each place in the code has a budget of lines for each device.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Final

from vgpud.daemon.rate_limit import RateLimit

UNLIMITED: Final = {"vgpud_unlimited": True}
"""The `extra` of lines of which the operator causes as many as there are."""
MAX_BUDGETS: Final = 4096
"""Budgets that are kept. With one more, the oldest is forgotten."""
DEBUG_FACTOR: Final = 50
"""How many times as many lines of level debug may come, which the operator has asked for."""
MAX_DEVICE: Final = 64
"""Characters of a device's name that count."""

CONVERSION: Final = re.compile(
    r"(?:\b(?P<key>[A-Za-z][A-Za-z0-9_]*)=)?%(?P<spec>[-#0 +]*[0-9]*(?:\.[0-9]+)?[a-zA-Z%])"
)
"""A printf-style conversion, with its key where it follows `key=`. Neither `%(name)s` nor `%*d`."""


class LogLimit(logging.Filter):
    """A filter for a handler. A line that follows some that were left out has their number at its
    end, in `suppressed`; `report` makes lines about the others."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()  # lines come from several threads
        self._budgets: OrderedDict[_Place, RateLimit] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line may be logged."""
        if hasattr(record, "vgpud_unlimited"):
            return True
        place = _place(record)
        with self._lock:
            budget = self._budgets.get(place)
            if budget is None:
                if len(self._budgets) >= MAX_BUDGETS:
                    self._budgets.popitem(last=False)
                factor = DEBUG_FACTOR if record.levelno <= logging.DEBUG else 1
                budget = self._budgets[place] = RateLimit(factor)
            if not budget.allows():
                return False
            record.suppressed = budget.suffix()
            return True

    def report(self, handle: Callable[[logging.LogRecord], object]) -> None:
        """Call `handle` with a line for each place whose last lines were left out.

        A place that has used up its budget waits for a later report.
        """
        with self._lock:
            found = [(place, budget.dropped()) for place, budget in self._budgets.items()]
        for place, dropped in found:
            if dropped:
                handle(place.report(dropped))


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in the code that logs, for one device if its lines have one."""

    logger: str
    level: int
    template: str
    device: str | None
    path: str = field(compare=False)
    line: int = field(compare=False)

    def report(self, dropped: int) -> logging.LogRecord:
        text = "%d lines not logged: %s"
        args: tuple[object, ...] = (dropped, self.template)
        if self.device is not None:
            text = "%d lines not logged device=%s: %s"
            args = (dropped, self.device, self.template)
        return logging.LogRecord(self.logger, self.level, self.path, self.line, text, args, None)


def _place(record: logging.LogRecord) -> _Place:
    template, device = f"{record.pathname}:{record.lineno}", None
    if record.args and isinstance(record.msg, str):  # else the message may be any text
        template = record.msg
        index = _index_of_device(template)
        if isinstance(record.args, tuple) and index is not None and index < len(record.args):
            device = str(record.args[index])[:MAX_DEVICE]
    return _Place(record.name, record.levelno, template, device, record.pathname, record.lineno)


@lru_cache(maxsize=1024)
def _index_of_device(template: str) -> int | None:
    keys = [found["key"] for found in CONVERSION.finditer(template) if found["spec"] != "%"]
    return keys.index("device") if "device" in keys else None
