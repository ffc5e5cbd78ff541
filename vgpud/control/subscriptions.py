"""Subscriptions to event notifications: events.subscribe and events.unsubscribe.

Notifications are sent through the outbox. The subscription of a client that misses one ends.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vgpud.control.call import Address, Caller, Handler, refused
from vgpud.control.events import Events
from vgpud.control.fitting import MAX_REPLY
from vgpud.control.models import ErrorKind, Event, Subscription, Unsubscribed
from vgpud.control.outbox import Outbox
from vgpud.control.params import Nothing, Subscribe
from vgpud.control.rpc import Call, encode_call
from vgpud.control.sockets import ControlSocket

_log = logging.getLogger(__name__)

MAX_SUBSCRIBERS: Final = 64
"""Each costs one datagram per event."""
MAX_PENDING: Final = 4096
"""Events that wait to be sent. Beyond it the oldest are dropped, which gaps in the numbers show."""
MAX_TEXT: Final = 1000
"""Characters of the message that remain in an event that is too long for a datagram."""

EVENT: Final = "event"
CLIENT_DROPPED: Final = "client.dropped"


@dataclass(frozen=True, slots=True)
class _Subscriber:
    caller: Caller
    kinds: re.Pattern[str]
    device: str | None
    after: int  # events up to this number may still be pending, for other subscribers

    def wants(self, event: Event) -> bool:
        if event.sequence <= self.after:
            return False
        if self.device is not None and event.device != self.device:
            return False
        if not self.caller.observes(event.device):
            return False
        return self.kinds.fullmatch(event.kind) is not None


class Subscriptions:
    """The subscribers of `events`. They get notifications while `run` runs."""

    def __init__(self, events: Events, sock: ControlSocket) -> None:
        self._events = events
        self._sock = sock
        self._subscribers: dict[Address, _Subscriber] = {}
        self._pending: deque[Event] = deque(maxlen=MAX_PENDING)
        self._wanted = asyncio.Event()
        events.listen(self._take)

    def __len__(self) -> int:
        return len(self._subscribers)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {"events.subscribe": self._subscribe, "events.unsubscribe": self._unsubscribe}

    def drop(self, address: Address, gone: bool) -> None:
        """End the subscription of a client that missed an event or is gone, if it has one."""
        subscriber = self._subscribers.pop(address, None)
        if subscriber is None:
            return
        caller = subscriber.caller
        if gone:
            _log.debug("subscriber gone client=%r pid=%d", address, caller.pid)
            return
        text = "subscription ended, the client does not read client=%r pid=%d uid=%d"
        _log.warning(text, address, caller.pid, caller.uid)
        text = f"a subscriber stopped reading: process {caller.pid} of user {caller.uid}"
        self._events.publish(CLIENT_DROPPED, text, pid=caller.pid, uid=caller.uid)

    def keep(self, allowed: Callable[[Caller], bool]) -> None:
        """End the subscriptions of clients for which `allowed` is false."""
        for address, subscriber in [*self._subscribers.items()]:
            if not allowed(subscriber.caller):
                del self._subscribers[address]

    async def run(self, outbox: Outbox) -> None:
        """Send events until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._pending:
                self._send(self._pending.popleft(), outbox)
                await asyncio.sleep(0)  # many events must not block the event loop

    def _take(self, event: Event) -> None:
        if self._subscribers:
            self._pending.append(event)
            self._wanted.set()

    def _send(self, event: Event, outbox: Outbox) -> None:
        wanting = [who for who, what in self._subscribers.items() if what.wants(event)]
        if not wanting:
            return
        data = _datagram(event)
        for address in wanting:
            outbox.send(address, data)

    def _subscribe(self, params: Subscribe, caller: Caller) -> Subscription:
        if not caller.address:
            text = "a socket without an address can't get events: bind it to one"
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        for address in [*self._subscribers]:
            if self._sock.is_gone(address):
                self.drop(address, gone=True)
        others = self._subscribers.keys() - {caller.address}
        if len(others) >= MAX_SUBSCRIBERS:
            raise refused(ErrorKind.BUSY, f"{MAX_SUBSCRIBERS} clients get events already")
        pattern = "|".join(fnmatch.translate(kind) for kind in params.kinds)
        last = self._events.sequence
        former = self._subscribers.get(caller.address)
        if former is not None and self._pending:  # it must not miss any of these
            last = max(former.after, self._pending[0].sequence - 1)
        self._subscribers[caller.address] = _Subscriber(
            caller, re.compile(pattern), params.device, last
        )
        return Subscription(kinds=params.kinds, device=params.device, sequence=last)

    def _unsubscribe(self, params: Nothing, caller: Caller) -> Unsubscribed:
        return Unsubscribed(was_subscribed=self._subscribers.pop(caller.address, None) is not None)


def _datagram(event: Event) -> bytes:
    try:
        data = _encoded(event)
    except ValueError:
        # Its publisher passed data that JSON can't express, which is a bug.
        _log.exception("event cut short kind=%s", event.kind)
        data = b""
    if not data or len(data) > MAX_REPLY:
        less = {"data": {}, "message": event.message[:MAX_TEXT]}
        data = _encoded(event.model_copy(update=less))
    return data


def _encoded(event: Event) -> bytes:
    return encode_call(Call(EVENT, event.model_dump(mode="json"), notification=True))
