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
from vgpud.control.call import Caller, Handler
from vgpud.control.events import Events
from vgpud.control.models import Event, Metrics
from vgpud.control.params import PagedText
from vgpud.control.places import Places, administers
from vgpud.daemon import openmetrics
from vgpud.daemon.openmetrics import DeviceFigures, Figures, WholeFigures
from vgpud.daemon.process_figures import own_figures
from vgpud.pace import Pace, paced

PAGE: Final = 48 << 10
"""Bytes of text, encoded as JSON: it fits into a datagram with its envelope."""
MAX_READERS: Final = 16
"""Callers whose text is kept. With one more, the oldest text is dropped; its reader then continues
in a new one."""
PLACES: Final = Places(MAX_READERS, each_user=8, reserved=4)
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
        self._unread: OrderedDict[Caller, str] = OrderedDict()
        self._rendering = asyncio.Lock()
        events.listen(self._count)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {"metrics.get": self.get}

    async def get(self, params: PagedText, caller: Caller) -> Metrics:
        """Return a page, which begins with the line that `offset` is in.

        A page at offset 0 is of a new text, further pages are of the same one. It has the figures
        of devices that the caller may observe, and of the whole daemon if it may observe that.
        """
        # The import takes a tenth of a second, once, which must not block the event loop.
        await asyncio.to_thread(importlib.import_module, _WRITER)
        text = self._unread.pop(caller, None) if params.offset else None
        if text is None:
            async with self._rendering:
                text = await paced(openmetrics.render(await self._figures(caller)))
        offset = min(params.offset, len(text))
        if offset < len(text):
            offset = text.rfind("\n", 0, offset) + 1
        page = "".join(_page(text, offset))
        if offset + len(page) < len(text):
            self._keep(caller, text)
        return Metrics(
            content_type=openmetrics.CONTENT_TYPE, text=page, offset=offset, total=len(text)
        )

    async def _figures(self, caller: Caller) -> Figures:
        devices, pace = [], Pace()
        for each in self._devices():
            if caller.observes(each.device.name):
                devices.append(each)
            await pace.step()
        whole = None
        if caller.observes(None):
            whole = WholeFigures({**self._events}, self._subscribers(), own_figures())
        uptime = round(time.monotonic() - self._started, 3)
        return Figures(__version__, uptime, tuple(devices), whole)

    def _keep(self, caller: Caller, text: str) -> None:
        """Keep a caller's text. Without room, the oldest of its user goes, or else of all."""
        self._unread.pop(caller, None)
        if not PLACES.has_room(caller.uid, (each.uid for each in self._unread)):
            own = (each for each in self._unread if each.uid == caller.uid)
            others = (each for each in self._unread if not administers(each.uid))
            oldest = next(own, None) or next(others, None) or next(iter(self._unread))
            del self._unread[oldest]
        self._unread[caller] = text

    def _count(self, event: Event) -> None:
        self._events[event.kind] += 1


def _page(text: str, offset: int) -> Iterator[str]:
    room = PAGE
    for line in text[offset:].splitlines(keepends=True):
        room -= len(json.dumps(line))
        if room < 0:
            return
        yield line
