"""The handlers of a GPU's two queues: they decode a chain's command, execute and answer it.

A fenced command is answered when everything before it on its timeline is done. Source: virtio 1.3,
5.7.6.7 VIRTIO_GPU_FLAG_FENCE and VIRTIO_GPU_FLAG_INFO_RING_IDX.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from vgpud.errors import OutOfMemory, VgpudError
from vgpud.gpu.contexts import Submission
from vgpud.gpu.errors import Unspecified, response_code
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.quota import Charge
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.command_codec import COMMANDS, Command, CommandWithEntries, decode_body
from vgpud.gpu.wire.commands import MoveCursor, Submit3D, UpdateCursor
from vgpud.gpu.wire.header import Header, decode_header
from vgpud.native.ring import FastPath
from vgpud.vhost.ring import REQUEST_LIMIT
from vgpud.vhost.split_ring import BUFFER, Chain
from vgpud.vhost.virtqueue import Virtqueue

log = logging.getLogger(__name__)

FEW_BUFFERS: Final = 64
"""Buffers of a response up to which a chain is not charged. A driver has one, or a few where its
memory is scattered."""
_BUFFER_SIZE: Final = BUFFER.itemsize

_NO_HEADER = Header(0)
_CURSOR_COMMANDS = frozenset({UpdateCursor.command_type, MoveCursor.command_type})


class _Owned:
    """A command's coroutine, which is closed with the handler that owns it: a handler that has not
    begun when it is closed gets to no line of its own."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, responses.Response | Submission]) -> None:
        self.coroutine = coroutine

    def __del__(self) -> None:
        self.coroutine.close()


class GpuQueue:
    """The handler of one queue, which is `queue` once it has been started."""

    queue: Virtqueue | None = None

    def __init__(self, gpu: Gpu, timelines: Timelines, *, cursor: bool) -> None:
        self._gpu = gpu
        self._timelines = timelines
        timelines.after_batch(self._publish)
        self._cursor = cursor
        self._counters = gpu.counters
        self._commands = gpu.counters.commands
        self._charges: dict[int, Charge] = {}  # of the chains that are not answered, by head

    def handle(self, chain: Chain, request: bytes) -> Coroutine[Any, Any, None] | None:
        """Execute the command of a chain, as a `vhost.pump.Handler`."""
        header = decode_header(request)
        if header is None:
            error = Unspecified(f"a request of {len(request)} bytes")
            self._complete(chain, _NO_HEADER, self._refusal(_NO_HEADER, error))
            return None
        try:
            self._charge(chain)
        except OutOfMemory as error:  # at once, because it can't be kept until its fence
            self._complete(chain, header, self._refusal(header, error))
            return None
        command: Command | None = None
        try:
            if chain.cut:
                raise Unspecified(f"a request of more than {REQUEST_LIMIT} bytes")
            command = decode_body(header, request)
            if (header.type in _CURSOR_COMMANDS) is not self._cursor:
                name = type(command).__name__
                raise Unspecified(f"{name} on the wrong queue")
            self._commands[type(command)] += 1
            outcome = self._gpu.execute(command)
        except VgpudError as error:
            self._answer(chain, header, self._refusal(header, error, command))
            return None
        # The usual one first, as `isinstance` of a Coroutine is slow.
        if not isinstance(outcome, responses.OkNoData) and isinstance(outcome, Coroutine):
            return self._wait(chain, header, command, _Owned(outcome))
        self._take(chain, header, outcome)
        return None

    def request_size(self, begin: bytes) -> int:
        """Return how many bytes of a request to read, as a `vhost.pump.RequestSize`."""
        header = decode_header(begin)
        kind = None if header is None else COMMANDS.get(header.type)
        if header is None or kind is None:
            return 0
        if issubclass(kind, CommandWithEntries):
            return REQUEST_LIMIT
        stream = self._gpu.contexts.longest_stream(header.ctx_id) if kind is Submit3D else 0
        return kind.end + stream

    def fast_path(self) -> FastPath | None:
        """Return the fast path, or None while there is something that its commands, or their
        fences, would have to wait for: commands in progress, or a frame that is not taken yet."""
        transfers = self._gpu.transfers
        if transfers.served:  # of the last batch
            self._count()
        if not self._timelines.empty or not self._gpu.scanouts.settled:
            return None
        return transfers.ready()

    def forget(self) -> None:
        """Drop the answers that are not written yet, because the driver has been reset."""
        for head in [*self._charges]:
            self._release(head)
        if self.queue is not None:
            self.queue.forget_unanswered()

    @property
    def problem(self) -> str | None:
        """Why the queue is stopped; None while it is not, or was stopped by the front-end."""
        queue = self.queue
        if queue is None or queue.fault is None:
            return None
        return f"the {queue.name} queue is stopped until the guest resets the device: {queue.fault}"

    def _charge(self, chain: Chain) -> None:
        """Charge the memory that a chain of many buffers takes until it is answered."""
        if len(chain.writable) > FEW_BUFFERS:
            self._release(chain.head)  # taken again after a stop
            charge = self._gpu.quota.charge(_BUFFER_SIZE * len(chain.writable))
            self._charges[chain.head] = charge

    def _release(self, head: int) -> None:
        if (charge := self._charges.pop(head, None)) is not None:
            charge.release()

    def _count(self) -> None:
        flat, deep, fences = self._gpu.transfers.collect()
        self._commands[commands.TransferToHost2D] += flat
        self._commands[commands.TransferToHost3D] += deep
        self._counters.fences += fences

    async def _wait(
        self,
        chain: Chain,
        header: Header,
        command: Command,
        waiting: _Owned,
    ) -> None:
        outcome: responses.Response | Submission
        try:
            outcome = await waiting.coroutine
        except VgpudError as error:
            outcome = self._refusal(header, error, command)
        self._take(chain, header, outcome)

    def _take(self, chain: Chain, header: Header, outcome: responses.Response | Submission) -> None:
        """Start a submission, or answer with a response."""
        if isinstance(outcome, Submission):
            answer = partial(self._finish, chain, header)
            self._timelines.run(header.ring, outcome.start, answer)
        else:
            self._answer(chain, header, outcome)

    def _finish(self, chain: Chain, header: Header, error: VgpudError | None) -> None:
        """Answer a submission, which has waited on its timeline already."""
        self._counters.fences += header.fenced
        response = responses.OkNoData() if error is None else self._refusal(header, error)
        self._complete(chain, header, response)

    def _answer(self, chain: Chain, header: Header, response: responses.Response) -> None:
        if header.fenced:
            self._timelines.after(header.ring, lambda _: self._fence(chain, header, response))
        else:
            self._complete(chain, header, response)

    def _fence(self, chain: Chain, header: Header, response: responses.Response) -> None:
        self._counters.fences += 1
        self._complete(chain, header, response)

    def _complete(self, chain: Chain, header: Header, response: responses.Response) -> None:
        assert self.queue is not None, "the queue has been started"
        if self._charges:
            self._release(chain.head)
        publish = not self._timelines.batching
        self.queue.complete(chain, responses.encode(response, header), publish=publish)

    def _publish(self) -> None:
        """Publish the answers of a batch."""
        if self.queue is not None:
            self.queue.publish()

    def _refusal(
        self, header: Header, error: VgpudError, command: Command | None = None
    ) -> responses.Error:
        self._counters.refused += 1
        if isinstance(error, OutOfMemory):
            name = "a command" if command is None else type(command).__name__
            self._gpu.quota.note_refusal(f"{name}: {error}")
        code = response_code(error)
        device, details = self._gpu.spec.name, (header.type, code, error)
        if resource := getattr(command, "resource_id", 0):
            text = "command refused device=%s resource=%d type=%#x code=%#x: %s"
            log.warning(text, device, resource, *details)
        else:
            log.warning("command refused device=%s type=%#x code=%#x: %s", device, *details)
        return responses.Error(code)
