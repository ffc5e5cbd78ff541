"""The VMM's display, over the socket of GPU_SET_SOCKET: scanouts, updates and cursors go out, two
questions come back.

Implements `gpu.ports.Display`. Nothing that the device calls here waits: it leaves word of what has
changed, and a task sends it when the socket takes it: the newest contents of each place, only once,
and only where they differ from what was sent last. So a slow VMM costs frames, never the guest's
time, and never more memory than a copy of what it shows. Source: QEMU,
docs/interop/vhost-user-gpu.rst.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import PeerError
from vgpud.gpu.counters import Counters
from vgpud.gpu.display import messages as display
from vgpud.gpu.display.damage import Damage
from vgpud.gpu.display.shadow import TILE, Shadow
from vgpud.gpu.display.shadows import Shadows
from vgpud.gpu.display.tiles import rectangles
from vgpud.gpu.errors import Unspecified
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire import responses
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId
from vgpud.unix.stream_socket import StreamSocket

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where the pixels are: `gpu.scanouts`. Both return None of what shows nothing any more."""

    def update(self, scanout_id: int, rect: Rect, shadow: Shadow) -> NDArray[np.uint8] | None:
        """Brings a part of a shadow up to date; returns its changed tiles."""

    def xrgb(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        """Reads a part as (height, width, 4) of B, G, R, X."""


PATIENCE = 4.0
"""Seconds for an answer: Linux waits 5 for what it asks us, and should get an error of ours before
it gives up."""

MAX_UPDATE = 4 << 20
"""Bytes of pixels compared or read, and sent, at a time: a fraction of a millisecond of the loop's
time, however large the display is."""

SEND_BUFFER = 9 << 18
"""Bytes, which the kernel doubles for what it needs itself: one update fits. QEMU reads an update
with its lock held, so one that comes in small pieces stops the guest's CPUs; and more than one in
there would be old pictures."""

BYTES_PER_PIXEL = 4

_CHUNK = 4096


@dataclass(slots=True, eq=False)
class _Question:
    request: display.Request
    answer: asyncio.Future[display.Reply]


class DisplayLink:
    """One display socket, from GPU_SET_SOCKET until it closes or is replaced."""

    def __init__(
        self,
        device: str,
        socket: StreamSocket,
        source: Source,
        quota: Quota,
        counters: Counters | None = None,
    ) -> None:
        self._device = device
        self._socket = socket
        socket.buffer(SEND_BUFFER)
        self._counters = counters if counters is not None else Counters()
        self._source = source
        self._shadows = Shadows(quota)
        self._reader = display.ReplyReader()
        self._features = display.ProtocolFeature(0)
        self._questions: deque[_Question] = deque()  # to be sent
        self._asked: deque[_Question] = deque()  # to be answered, in this order
        self._sizes: dict[int, display.Scanout] = {}
        self._damage: dict[int, Damage] = {}
        self._cursors: dict[
            int, display.CursorUpdate | display.CursorPos | display.CursorPosHide
        ] = {}
        self._changed = asyncio.Event()
        self._features_unsaid = False
        self._closed = False
        self._greeted = asyncio.Event()

    # What the device calls

    def scanout(self, scanout_id: int, width: int, height: int) -> None:
        self._damage.pop(scanout_id, None)
        self._shadows.begin(scanout_id, width, height)  # the display forgets what it showed
        self._sizes[scanout_id] = display.Scanout(ScanoutId(scanout_id), width, height)
        self._changed.set()

    def damage(self, scanout_id: int, rect: Rect) -> None:
        self._damage.setdefault(scanout_id, Damage()).add(rect)
        self._changed.set()

    def cursor_update(
        self, scanout_id: int, x: int, y: int, hot_x: int, hot_y: int, image: NDArray[np.uint8]
    ) -> None:
        self._cursors[scanout_id] = display.CursorUpdate(
            ScanoutId(scanout_id), x, y, hot_x, hot_y, image.tobytes()
        )
        self._changed.set()

    def cursor_move(self, scanout_id: int, x: int, y: int, *, visible: bool) -> None:
        unsent = self._cursors.get(scanout_id)
        if not visible:
            self._cursors[scanout_id] = display.CursorPosHide(ScanoutId(scanout_id), x, y)
        elif isinstance(unsent, display.CursorUpdate):
            self._cursors[scanout_id] = replace(unsent, x=x, y=y)
        else:
            self._cursors[scanout_id] = display.CursorPos(ScanoutId(scanout_id), x, y)
        self._changed.set()

    async def modes(self) -> Sequence[responses.DisplayMode]:
        reply = await self._ask(display.GetDisplayInfo())
        assert isinstance(reply, responses.DisplayInfo)
        return reply.modes

    async def edid(self, scanout_id: int) -> bytes:
        await self._greeted.wait()
        if not self._features & display.ProtocolFeature.EDID:
            raise Unspecified("the display has no EDID")
        reply = await self._ask(display.GetEdid(ScanoutId(scanout_id)))
        assert isinstance(reply, responses.Edid)
        return reply.data

    # What the session runs

    async def run(self) -> None:
        """Sends and receives until the VMM closes the socket; raises `PeerError` if it talks
        nonsense."""
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send())
                greeting = tasks.create_task(self._greet())
                await self._receive()
                sender.cancel()
                greeting.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Closes the socket; who waits for an answer gets `Unspecified`."""
        self._closed = True
        self._socket.close()
        self._shadows.clear()
        for question in (*self._questions, *self._asked):
            if not question.answer.done():
                question.answer.set_exception(_unanswered(question.request))
                question.answer.exception()  # there may be nobody left whom it concerns
        self._questions.clear()
        self._asked.clear()

    async def _greet(self) -> None:
        try:
            reply = await self._ask(display.GetProtocolFeatures())
        except Unspecified as error:
            log.warning("display without features device=%s: %s", self._device, error)
            return
        finally:
            self._greeted.set()  # this waits no longer than any question
        assert isinstance(reply, display.ProtocolFeatures)
        self._features = display.ProtocolFeature.EDID & reply.features
        self._features_unsaid = True
        self._changed.set()

    async def _ask(self, request: display.Request) -> display.Reply:
        if self._closed:
            raise _unanswered(request)
        question = _Question(request, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        self._changed.set()
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(question.answer)
        except TimeoutError:
            raise _unanswered(request) from None

    async def _receive(self) -> None:
        while True:
            data, fds = await self._socket.recv(_CHUNK)
            for fd in fds:  # no answer has any
                fd.close()
            if not data:
                return
            self._reader.receive_data(data)
            while (reply := self._reader.next_reply()) is not None:
                if not self._asked or not _answers(self._asked[0].request, reply):
                    raise PeerError(
                        f"display: {type(reply).__name__} came, which was not asked for"
                    )
                question = self._asked.popleft()
                if not question.answer.done():
                    question.answer.set_result(reply)

    async def _send(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if await self._send_some():
                self._changed.set()
                # Others' turn: what has not changed is not sent, and so has waited for nobody.
                await asyncio.sleep(0)

    async def _send_some(self) -> bool:
        """Sends what there is to say but for damage, of which there may be no end: one rectangle.

        True if there is more.
        """
        if self._features_unsaid:
            self._features_unsaid = False
            await self._socket.send(display.encode(display.SetProtocolFeatures(self._features)))
        while self._questions:
            question = self._questions.popleft()
            self._asked.append(question)
            await self._socket.send(display.encode(question.request))
        while self._sizes:
            _, scanout = self._sizes.popitem()
            await self._socket.send(display.encode(scanout))
        if self._damage:
            await self._send_damage()
        while self._cursors:
            _, cursor = self._cursors.popitem()
            await self._socket.send(display.encode(cursor))
        return bool(self._damage)

    async def _send_damage(self) -> None:
        scanout_id, damage = next(iter(self._damage.items()))
        del self._damage[scanout_id]
        rect = damage.pop()
        rows = _rows_at_a_time(rect)
        if rect.height > rows:
            below = Rect(rect.x, rect.y + rows, rect.width, rect.height - rows)
            damage.put_back(below)
            rect = Rect(rect.x, rect.y, rect.width, rows)
        if damage:
            self._damage[scanout_id] = damage  # behind the other outputs
        shadow = self._shadows.of(scanout_id)
        if shadow is None:
            pixels = self._source.xrgb(scanout_id, rect)
            if pixels is not None:
                await self._send_update(scanout_id, rect, pixels)
            return
        changed = self._source.update(scanout_id, rect, shadow)
        for part in rectangles(changed, rect, TILE) if changed is not None else ():
            await self._send_update(scanout_id, part, shadow.pixels(part))
            if self._shadows.of(scanout_id) is not shadow:  # of another size meanwhile
                return

    async def _send_update(self, scanout_id: int, rect: Rect, pixels: NDArray[np.uint8]) -> None:
        update = display.Update(ScanoutId(scanout_id), rect.x, rect.y, rect.width, rect.height)
        # In one go, as far as the socket takes it: who has the beginning waits for the rest.
        await self._socket.send(
            display.encode(update), behind=np.ascontiguousarray(pixels).reshape(-1).data
        )
        self._counters.display_updates += 1
        self._counters.display_bytes += pixels.nbytes


def _rows_at_a_time(rect: Rect) -> int:
    """How many rows of a rectangle are one update: down to the end of a row of tiles, if it can."""
    rows = max(MAX_UPDATE // (rect.width * BYTES_PER_PIXEL), 1)
    return max(rows - (rect.y + rows) % TILE[1], 1) if rows >= TILE[1] else rows


def _unanswered(request: display.Request) -> Unspecified:
    name = type(request).__name__
    return Unspecified(f"the display did not answer {name}")


def _answers(request: display.Request, reply: display.Reply) -> bool:
    match request:
        case display.GetProtocolFeatures():
            return isinstance(reply, display.ProtocolFeatures)
        case display.GetDisplayInfo():
            return isinstance(reply, responses.DisplayInfo)
        case _:
            return isinstance(reply, responses.Edid)
