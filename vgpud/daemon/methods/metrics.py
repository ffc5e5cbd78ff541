"""`metrics.get`: the daemon's metrics as OpenMetrics text, in pages.

The text is kept for each caller that has not read it to its end, since a new one would differ.
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
"""Bytes of text, encoded as JSON: it fits into a datagram with its envelope."""
MAX_READERS: Final = 16
"""Callers whose text is kept. With one more, the oldest text is dropped; its reader then continues
in a new one."""
_WRITER: Final = "prometheus_client.openmetrics.exposition"


class MetricsMethods:
    """The method about metrics.

    `devices` returns the figures of each device, `subscribers` the number of clients that get
    events.
    """

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
        """Return the handlers of the methods by name."""
        return {"metrics.get": self.get}

    async def get(self, params: PagedText, caller: Caller) -> Metrics:
        """Return a page, which begins with the line that `offset` is in.

        A page at offset 0 is of a new text, further pages are of the same one. It has the figures
        of devices that the caller may observe.
        """
        # The import takes a tenth of a second, once, which must not block the event loop.
        await asyncio.to_thread(importlib.import_module, _WRITER)
        text = self._unread.pop(caller.address, None) if params.offset else None
        if text is None:
            text = openmetrics.render(self._figures(caller))
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

    def _figures(self, caller: Caller) -> Figures:
        return Figures(
            version=__version__,
            uptime=round(time.monotonic() - self._started, 3),
            devices=tuple(each for each in self._devices() if caller.observes(each.device.name)),
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
