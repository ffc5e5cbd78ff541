"""`metrics.get`: what the daemon has counted, and how it stands, as OpenMetrics text in pages.

Owns the text of callers that have not read it to its end: it would be another at each call.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from vgpud import __version__
from vgpud.control.call import Address, Caller, Handler
from vgpud.control.events import Events
from vgpud.control.models import Event, Metrics
from vgpud.control.params import PagedText
from vgpud.daemon import openmetrics
from vgpud.daemon.openmetrics import DeviceFigures, Figures
from vgpud.daemon.process_figures import own_figures

PAGE: Final = 48 << 10
"""Bytes of text as JSON has it: fits into a datagram with what is around it."""
MAX_READERS: Final = 16
"""Callers whose text is kept. One more, and the one that has waited longest starts anew."""
_WRITER: Final = "prometheus_client.openmetrics.exposition"


class MetricsMethods:
    """`devices` says how each of them stands, `subscribers` how many clients get events."""

    def __init__(
        self,
        devices: Callable[[], Iterable[DeviceFigures]],
        events: Events,
        subscribers: Callable[[], int],
    ) -> None:
        self._devices = devices
        self._subscribers = subscribers
        self._started = time.monotonic()
        self._events: Counter[str] = Counter()
        self._unread: OrderedDict[Address, str] = OrderedDict()
        events.listen(self._count)

    def handlers(self) -> dict[str, Handler]:
        """What there is to call."""
        return {"metrics.get": self.get}

    async def get(self, params: PagedText, caller: Caller) -> Metrics:
        """A page, which begins with the line that `offset` is in.

        From offset 0 on it is of a new text, further pages of the same.
        """
        # It takes a tenth of a second, once, which others shall not have to wait for.
        await asyncio.to_thread(importlib.import_module, _WRITER)
        text = self._unread.pop(caller.address, None) if params.offset else None
        if text is None:
            text = openmetrics.render(self._figures())
        offset = min(params.offset, len(text))
        if offset < len(text):
            offset = text.rfind("\n", 0, offset) + 1
        page = "".join(_page(text, offset))
        if offset + len(page) < len(text):
            self._unread[caller.address] = text
            if len(self._unread) > MAX_READERS:
                self._unread.popitem(last=False)
        return Metrics(
            content_type=openmetrics.CONTENT_TYPE, text=page, offset=offset, total=len(text)
        )

    def _figures(self) -> Figures:
        return Figures(
            version=__version__,
            uptime=round(time.monotonic() - self._started, 3),
            devices=tuple(self._devices()),
            events=self._events,
            subscribers=self._subscribers(),
            process=own_figures(),
        )

    def _count(self, event: Event) -> None:
        self._events[event.kind] += 1


def _page(text: str, offset: int) -> Iterator[str]:
    room = PAGE
    for line in text[offset:].splitlines(keepends=True):
        room -= len(json.dumps(line))
        if room < 0:
            return
        yield line
