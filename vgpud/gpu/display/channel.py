"""The display channel: a VMM's display over the socket of VHOST_USER_GPU_SET_SOCKET.

Implements `gpu.display.display.Display`. What the guest flushes is taken before it can change
(`gpu.display.scanout_frames`), and a task sends it when the socket accepts it: whole frames, the
newest after the one before it has been sent, and only where they differ from what was sent last.
So a slow VMM costs frames, not the guest's time, and never more memory than two copies of what it
shows. Source: QEMU, docs/interop/vhost-user-gpu.rst.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import PeerError, PeerGone
from vgpud.gpu.counters import Counters
from vgpud.gpu.display import messages
from vgpud.gpu.display.frame import BYTES_PER_PIXEL, Frame
from vgpud.gpu.display.reading import STEP, Budget
from vgpud.gpu.display.scanout_frames import ScanoutFrames, ScanoutReader
from vgpud.gpu.errors import Unspecified
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire import responses
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId
from vgpud.unix.received_fd import close_all
from vgpud.unix.stream_socket import StreamSocket

log = logging.getLogger(__name__)


REPLY_TIMEOUT = 4.0
"""Seconds to wait for a reply. A Linux guest waits 5 seconds for the command that needs it, and
should get an error before that."""

ALIKE = 2
"""Requests that are alike and not answered: one may be of a guest that has given up, and the next
is sent nevertheless. With more, a guest could have a VMM that does not answer sent ever more."""

WAKE_AFTER = 0.02
"""Seconds without a message after which a VMM is sent a request that changes nothing.

QEMU reads this socket with its lock held, and waits for a whole message once its event loop has
reported one. Since QEMU 10.2 that loop uses io_uring, which can report a message that has been read
already: the sender's wake-up may come after the bytes that it is for. QEMU then stops, with all of
the guest's CPUs, until something arrives. So something always does.
Source: QEMU, hw/display/vhost-user-gpu.c; Linux, io_uring/poll.c."""

MAX_UPDATE = 64 << 20
"""Bytes of pixels in a message, 4096 x 4096 of them. A frame is one message if it can be: QEMU
shows each message by itself, and so may show a frame that is cut in the middle. But it reads a
message with its lock held, which stops the guest's CPUs for some 20 milliseconds with this size."""

SEND_BUFFER = 9 << 18
"""The socket's send buffer in bytes, which the kernel doubles for its own bookkeeping: a frame of
1280 x 800 fits. More in the buffer would be old pictures."""

CHUNK = 256 << 10
"""Bytes that are sent at a time: they are copied first, and are then still in the CPU's cache."""

TURN = 0.0005
"""Seconds of sending after which other tasks have their turn. A VMM that has a part of a message
waits for the rest, so it is not sent in smaller pieces."""

REST = 1.0
"""Seconds of rest after each second of taking and sending a frame, so that a guest that draws
faster than its pictures can be sent has its turn."""

MAX_REST = 0.008
"""The longest such rest, so that a slow display is kept busy."""

_RECEIVED = 4096


@dataclass(slots=True, eq=False)
class _PendingRequest:
    """A request of the back-end that has not been answered, and how many wait for its reply."""

    request: messages.DisplayRequest
    reply: asyncio.Future[messages.DisplayReply]
    waiting: int = 0


class DisplayChannel:
    """One display socket, from VHOST_USER_GPU_SET_SOCKET until it is closed or replaced."""

    def __init__(
        self,
        device: str,
        socket: StreamSocket,
        scanouts: ScanoutReader,
        quota: Quota,
        counters: Counters | None = None,
    ) -> None:
        self._device = device
        self._socket = socket
        socket.buffer(SEND_BUFFER)
        self._counters = counters if counters is not None else Counters()
        self._scanouts = scanouts
        self._quota = quota
        self._chunk = np.empty(CHUNK, np.uint8)
        self._reader = messages.DisplayReplyReader()
        self._features = messages.DisplayFeature(0)
        self._unsent: deque[_PendingRequest] = deque()  # in the order to send
        self._unanswered: deque[_PendingRequest] = deque()  # sent, in the order of their replies
        self._sizes: dict[int, messages.DisplayScanout] = {}
        self._frames: dict[int, ScanoutFrames] = {}  # of those that are on, in the order to send
        self._cursors: dict[
            int,
            messages.DisplayCursorUpdate | messages.DisplayCursorMove | messages.DisplayCursorHide,
        ] = {}
        self._changed = asyncio.Event()
        self._features_unsent = False
        self._closed = False
        self._negotiated = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0  # on the loop's clock
        self._waking: asyncio.TimerHandle | None = None

    # What the device calls

    def scanout(self, scanout_id: int, width: int, height: int) -> None:
        before = self._frames.pop(scanout_id, None)
        if before is not None:
            before.close()  # the display discards its old contents
        if width and height:
            size = width, height
            self._frames[scanout_id] = ScanoutFrames(
                ScanoutId(scanout_id), size, self._scanouts, self._quota
            )
        self._sizes[scanout_id] = messages.DisplayScanout(ScanoutId(scanout_id), width, height)
        self._changed.set()

    def damage(self, scanout_id: int, rect: Rect) -> None:
        frames = self._frames.get(scanout_id)
        if frames is not None:
            frames.unread.add(rect)
            self._changed.set()

    @property
    def unsettled(self) -> bool:
        return any(frames.unsettled for frames in self._frames.values())

    def taking(self, scanout_id: int) -> bool:
        frames = self._frames.get(scanout_id)
        return frames is not None and frames.taking

    def settle(self, scanout_id: int, budget: Budget) -> bool:
        frames = self._frames.get(scanout_id)
        return frames is None or self._closed or frames.settle(budget)

    async def finish_settling(self, scanout_id: int) -> None:
        frames = self._frames.get(scanout_id)
        if frames is not None and not self._closed:
            await frames.finish_settling()
            self._changed.set()

    def cursor_update(
        self, scanout_id: int, x: int, y: int, hot_x: int, hot_y: int, image: NDArray[np.uint8]
    ) -> None:
        self._cursors[scanout_id] = messages.DisplayCursorUpdate(
            ScanoutId(scanout_id), x, y, hot_x, hot_y, image.tobytes()
        )
        self._changed.set()

    def cursor_move(self, scanout_id: int, x: int, y: int, *, visible: bool) -> None:
        queued = self._cursors.get(scanout_id)
        if not visible:
            self._cursors[scanout_id] = messages.DisplayCursorHide(ScanoutId(scanout_id), x, y)
        elif isinstance(queued, messages.DisplayCursorUpdate):
            self._cursors[scanout_id] = replace(queued, x=x, y=y)
        else:
            self._cursors[scanout_id] = messages.DisplayCursorMove(ScanoutId(scanout_id), x, y)
        self._changed.set()

    async def modes(self) -> Sequence[responses.DisplayMode]:
        reply = await self._request(messages.DisplayGetInfo())
        assert isinstance(reply, responses.DisplayInfo)
        return reply.modes

    async def edid(self, scanout_id: int) -> bytes:
        await self._negotiated.wait()
        if not self._features & messages.DisplayFeature.EDID:
            raise Unspecified("the display has no EDID")
        reply = await self._request(messages.DisplayGetEdid(ScanoutId(scanout_id)))
        assert isinstance(reply, responses.Edid)
        return reply.data

    # What the session runs

    async def run(self) -> None:
        """Send and receive until the VMM closes the socket.

        Raises `PeerError` for a malformed or unexpected message.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send())
                negotiation = tasks.create_task(self._negotiate_features())
                await self._receive()
                sender.cancel()
                negotiation.cancel()
        except* PeerGone:
            pass  # The VMM has closed the socket, while something was being sent.
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket; what waits for a reply gets `Unspecified`."""
        self._closed = True
        self._socket.close()
        if self._waking is not None:
            self._waking.cancel()
        for frames in self._frames.values():
            frames.close()
            frames.end()
        for pending in (*self._unsent, *self._unanswered):
            if not pending.reply.done():
                pending.reply.set_exception(_no_reply(pending.request))
                pending.reply.exception()  # retrieved: the caller may have been cancelled
        self._unsent.clear()
        self._unanswered.clear()

    async def _negotiate_features(self) -> None:
        try:
            reply = await self._request(messages.DisplayGetProtocolFeatures())
        except Unspecified as error:
            log.warning("display without features device=%s: %s", self._device, error)
            return
        finally:
            self._negotiated.set()  # in any case: `_request` has a time limit
        assert isinstance(reply, messages.DisplayFeatures)
        self._features = messages.DisplayFeature.EDID & reply.features
        self._features_unsent = True
        self._changed.set()

    async def _request(self, request: messages.DisplayRequest) -> messages.DisplayReply:
        if self._closed:
            raise _no_reply(request)
        pending = self._ask(request)
        pending.waiting += 1
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                return await asyncio.shield(pending.reply)
        except TimeoutError:
            raise _no_reply(request) from None
        finally:
            pending.waiting -= 1
            if not pending.waiting and pending in self._unsent:
                self._unsent.remove(pending)

    def _ask(self, request: messages.DisplayRequest) -> _PendingRequest:
        """Have a request sent, unless there is one like it that has not been sent: the reply to one
        that has been may be older than what is asked for."""
        for pending in self._unsent:
            if pending.request == request:
                return pending
        pending = _PendingRequest(request, self._loop.create_future())
        self._unsent.append(pending)
        self._changed.set()
        return pending

    def _next_request(self) -> _PendingRequest | None:
        """Return the next request to send, if there is one that may be sent now."""
        asked = [pending.request for pending in self._unanswered]
        return next((one for one in self._unsent if asked.count(one.request) < ALIKE), None)

    async def _receive(self) -> None:
        while True:
            data, fds = await self._socket.recv(_RECEIVED)
            close_all(fds)  # no reply has any
            if not data:
                return
            self._reader.receive_data(data)
            while (reply := self._reader.next_reply()) is not None:
                if not self._unanswered or not _answers(self._unanswered[0].request, reply):
                    raise PeerError(
                        f"display: {type(reply).__name__} came, which was not asked for"
                    )
                pending = self._unanswered.popleft()
                self._changed.set()  # another request like it may be sent
                if not pending.reply.done():
                    pending.reply.set_result(reply)

    async def _send(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            began = self._loop.time()
            if await self._send_some():
                self._changed.set()
            # Let other tasks run: `_send_some` may not have waited, where nothing was sent.
            await asyncio.sleep(min((self._loop.time() - began) * REST, MAX_REST))

    async def _send_some(self) -> bool:
        """Send everything but pictures, and one frame; return whether there is more.

        One, because a guest may draw frames without end.
        """
        if self._features_unsent:
            self._features_unsent = False
            await self._tell(messages.DisplaySetProtocolFeatures(self._features))
        while (pending := self._next_request()) is not None:
            self._unsent.remove(pending)
            self._unanswered.append(pending)
            await self._socket.send(messages.encode(pending.request))
        while self._sizes:
            _, scanout = self._sizes.popitem()
            await self._tell(scanout)
        for scanout_id, frames in self._frames.items():
            if frames.waiting:
                self._frames[scanout_id] = self._frames.pop(scanout_id)  # after the other outputs
                await self._send_frame(frames)
                break
        while self._cursors:
            _, cursor = self._cursors.popitem()
            await self._tell(cursor)
        return any(frames.waiting for frames in self._frames.values())

    async def _send_frame(self, frames: ScanoutFrames) -> None:
        if frames.shadow is None:
            await self._send_unread(frames)
            return
        if frames.unread:
            await frames.take()
        frame = frames.begin(MAX_UPDATE // BYTES_PER_PIXEL)
        if frame is not None:
            await self._stream(frame)
            frames.end()

    async def _send_unread(self, frames: ScanoutFrames) -> None:
        """Send damage as it is now, because there is no memory for a shadow."""
        parts = frames.begin_unread(STEP)
        while (part := await parts.next()) is not None and not frames.closed:
            pixels = self._scanouts.xrgb(frames.scanout_id, part)
            if pixels is not None:
                await self._stream(Frame(frames.scanout_id, [(part, pixels)]))
        frames.end()

    async def _stream(self, frame: Frame) -> None:
        """Send all of a frame, in messages that follow each other at once."""
        turn_ends = self._loop.time() + TURN
        self._counters.display_bytes += frame.pixel_bytes
        self._counters.display_updates += frame.updates
        while size := frame.fill(self._chunk):
            await self._socket.send(self._chunk[:size].data)
            if self._loop.time() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = self._loop.time() + TURN
        self._told()

    async def _tell(self, request: messages.DisplayRequest) -> None:
        """Send a request that has no reply."""
        await self._socket.send(messages.encode(request))
        self._told()

    def _told(self) -> None:
        self._sent_at = self._loop.time()
        if self._waking is None and not self._closed:
            self._waking = self._loop.call_later(WAKE_AFTER, self._wake)

    def _wake(self) -> None:
        """Send a request that wakes a VMM up, unless another message was sent just now."""
        self._waking = None
        left = self._sent_at + WAKE_AFTER - self._loop.time()
        if left > 0:
            self._waking = self._loop.call_later(left, self._wake)
        elif not self._unsent and not self._unanswered:
            self._ask(messages.DisplayGetProtocolFeatures())


def _no_reply(request: messages.DisplayRequest) -> Unspecified:
    return Unspecified(f"the display did not answer {messages.request_name(request)}")


def _answers(request: messages.DisplayRequest, reply: messages.DisplayReply) -> bool:
    match request:
        case messages.DisplayGetProtocolFeatures():
            return isinstance(reply, messages.DisplayFeatures)
        case messages.DisplayGetInfo():
            return isinstance(reply, responses.DisplayInfo)
        case _:
            return isinstance(reply, responses.Edid)
