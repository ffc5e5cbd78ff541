"""What has to be looked up of a sender before its message can be served: its groups, its socket.

Either may take seconds, with LDAP or an automount, or not end. So there is a thread for each sender
that is not known yet, whose messages wait meanwhile, in their order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from vgpud.control.access import AccessList
from vgpud.control.call import Caller
from vgpud.control.caller_sockets import CallerSockets, unanswerable
from vgpud.control.places import Places
from vgpud.control.sockets import Sender

_log = logging.getLogger(__name__)

PLACES: Final = Places(64, each_user=8, reserved=16)
"""Senders that are looked up at once, each by a thread. Messages of more are lost."""
MAX_KEPT: Final = 64
"""Messages of one sender that wait."""
MAX_KEPT_BYTES: Final = 256 << 10
"""Bytes of them, but for the first."""


@dataclass(slots=True)
class _Visit:
    """A sender that is being looked up, and its messages."""

    messages: list[tuple[bytes, bool]] = field(default_factory=list)
    size: int = 0


class Reception:
    """The senders that are being looked up. `serve` gets each message once its sender is known.

    `access` returns the grants in force. The second argument of `serve` is the caller as it can be
    answered, the third says that the message was cut off.
    """

    def __init__(
        self,
        sockets: CallerSockets,
        access: Callable[[], AccessList],
        serve: Callable[[bytes, Caller, bool], None],
    ) -> None:
        self._sockets = sockets
        self._access = access
        self._serve = serve
        self._visits: dict[Caller, _Visit] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def receive(self, message: bytes, sender: Sender) -> None:
        """Serve a message now or later."""
        visit = self._visits.get(sender.caller)
        if visit is None:
            caller = self._sockets.known(sender.caller)
            if caller is not None and self._access().knows(caller):
                self._serve(message, caller, sender.truncated)
                return
            visit = self._begin(sender.caller, caller)
        if visit is None:
            return
        if visit.messages and (
            len(visit.messages) >= MAX_KEPT or visit.size + len(message) > MAX_KEPT_BYTES
        ):
            return
        visit.messages.append((message, sender.truncated))
        visit.size += len(message)

    def _begin(self, sender: Caller, known: Caller | None) -> _Visit | None:
        users = Counter(each.uid for each in self._visits)
        if not PLACES.has_room(sender.uid, users):
            _log.warning("control call lost, too many unknown callers uid=%d", sender.uid)
            return None
        loop, access = asyncio.get_running_loop(), self._access()

        def look_up() -> None:
            caller = unanswerable(sender)
            try:
                caller = known if known is not None else self._sockets.look_up(sender)
                access.look_up(caller)
            except Exception:
                _log.exception("control caller not looked up client=%r", sender)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._found, sender, caller, access)

        thread = threading.Thread(target=look_up, name="vgpud-caller", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had
            _log.warning("control call lost: %s", error)
            return None
        visit = self._visits[sender] = _Visit()
        return visit

    def _found(self, sender: Caller, caller: Caller, access: AccessList) -> None:
        visit = self._visits.pop(sender)
        self._sockets.remember(caller)
        for message, truncated in visit.messages:
            if access is self._access():
                self._serve(message, caller, truncated)
            else:  # the configuration was read again meanwhile
                self.receive(message, Sender(sender, truncated))
