"""Subscriptions to event notifications: events.subscribe and events.unsubscribe.

Notifications are sent through the outbox. The subscription of a client that misses one ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vgpud.control.call import Caller, Handler, refused
from vgpud.control.events import Events
from vgpud.control.fitting import MAX_REPLY
from vgpud.control.models import ErrorKind, Event, Subscription, Unsubscribed
from vgpud.control.outbox import Outbox
from vgpud.control.params import Nothing, Subscribe
from vgpud.control.patterns import Pattern
from vgpud.control.places import Places
from vgpud.control.rpc import Call, encode_call
from vgpud.control.sockets import ControlSocket
from vgpud.pace import Pace

_log = logging.getLogger(__name__)

MAX_SUBSCRIBERS: Final = 64
"""Each costs one datagram per event."""
PLACES: Final = Places(MAX_SUBSCRIBERS, each_user=32, reserved=16)
MAX_PENDING: Final = 4096
"""Events that wait to be sent. Beyond it the oldest are dropped, which gaps in the numbers show."""
MAX_TEXT: Final = 1000
"""Characters of the message that remain in an event that is too long for a datagram."""

EVENT: Final = "event"
CLIENT_DROPPED: Final = "client.dropped"


@dataclass(frozen=True, slots=True)
class _Subscriber:
    caller: Caller
    kinds: tuple[Pattern, ...]
    device: str | None
    after: int  # events up to this number may still be pending, for other subscribers
    known: dict[str, bool] = field(default_factory=dict)  # kinds of events, which are few

    def wants(self, event: Event) -> bool:
        if event.sequence <= self.after:
            return False
        if self.device is not None and event.device != self.device:
            return False
        if not self.caller.observes(event.device):
            return False
        wanted = self.known.get(event.kind)
        if wanted is None:
            wanted = self.known[event.kind] = any(each.matches(event.kind) for each in self.kinds)
        return wanted


class Subscriptions:
    """The subscribers of `events`. They get notifications while `run` runs."""

    def __init__(self, events: Events, sock: ControlSocket) -> None:
        self._events = events
        self._sock = sock
        self._subscribers: dict[Caller, _Subscriber] = {}
        self._pending: deque[Event] = deque(maxlen=MAX_PENDING)
        self._present = 0  # the number of the event that is being sent
        self._sending: deque[Caller] = deque()  # the clients to which it is still to go
        self._wanted = asyncio.Event()
        events.listen(self._take)

    def __len__(self) -> int:
        return len(self._subscribers)

    @property
    def callers(self) -> list[Caller]:
        """The subscribers."""
        return [*self._subscribers]

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {"events.subscribe": self._subscribe, "events.unsubscribe": self._unsubscribe}

    def drop(self, caller: Caller, gone: bool) -> None:
        """End the subscription of a client that missed an event or is gone, if it has one."""
        if self._subscribers.pop(caller, None) is None:
            return
        if gone:
            _log.debug("subscriber gone client=%r", caller)
            return
        text = "subscription ended, the client does not read client=%r pid=%d uid=%d"
        _log.warning(text, caller.address, caller.pid, caller.uid)
        text = f"a subscriber stopped reading: process {caller.pid} of user {caller.uid}"
        self._events.publish(CLIENT_DROPPED, text, pid=caller.pid, uid=caller.uid)

    def keep(self, allowed: Callable[[Caller], bool]) -> None:
        """End the subscriptions of clients for which `allowed` is false."""
        for caller in [*self._subscribers]:
            if not allowed(caller):
                del self._subscribers[caller]

    async def run(self, outbox: Outbox) -> None:
        """Send events until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._pending:
                await self._send(self._pending.popleft(), outbox)
                await asyncio.sleep(0)  # many events must not block the event loop

    def _take(self, event: Event) -> None:
        if self._subscribers:
            self._pending.append(event)
            self._wanted.set()

    async def _send(self, event: Event, outbox: Outbox) -> None:
        data, pace = b"", Pace()
        self._present, self._sending = event.sequence, deque(self._subscribers)
        while self._sending:
            subscriber = self._subscribers.get(self._sending.popleft())
            if subscriber is not None and subscriber.wants(event):
                data = data or _datagram(event)
                outbox.send(subscriber.caller, data)
            await pace.step()

    def _subscribe(self, params: Subscribe, caller: Caller) -> Subscription:
        if not caller.address:
            text = "a socket without an address can't get events: bind it to one"
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        former = self._subscribers.get(caller)
        if former is None:
            self._make_room(caller)
        last = self._events.sequence
        if former is not None:  # it must not miss any that are on their way
            if caller in self._sending:
                last = max(former.after, self._present - 1)
            elif self._pending:
                last = max(former.after, self._pending[0].sequence - 1)
        patterns = tuple(Pattern(kind) for kind in dict.fromkeys(params.kinds))
        self._subscribers[caller] = _Subscriber(caller, patterns, params.device, last)
        return Subscription(kinds=params.kinds, device=params.device, sequence=last)

    def _make_room(self, caller: Caller) -> None:
        """End the subscriptions of clients that are gone if that lets the caller in."""
        if PLACES.has_room(caller.uid, (each.uid for each in self._subscribers)):
            return
        for other in [*self._subscribers]:
            if self._sock.is_gone(other):
                self.drop(other, gone=True)
        if not PLACES.has_room(caller.uid, (each.uid for each in self._subscribers)):
            text = f"too many clients get events already: {len(self._subscribers)}"
            raise refused(ErrorKind.BUSY, text)

    def _unsubscribe(self, params: Nothing, caller: Caller) -> Unsubscribed:
        return Unsubscribed(was_subscribed=self._subscribers.pop(caller, None) is not None)


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
