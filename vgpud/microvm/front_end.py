"""A blocking vhost-user front-end for the micro-VM and `vgpud bench`.

It sends messages in the order in which QEMU sends them. The back-end's requests are served while
the guest waits for the device, all in one thread. Source: the vhost-user specification, "Message
Specification" and "Starting and stopping rings"; the messages are in `vhost.wire`.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self, TypeVar

from vgpud.client import Client
from vgpud.errors import HostError, PeerError
from vgpud.gpu.wire.protocol import Feature, ShmId
from vgpud.memory.addresses import Gpa, Uva
from vgpud.unix import ancillary, eventfd
from vgpud.unix.fd import Fd
from vgpud.vhost.wire import messages
from vgpud.vhost.wire.back_end_channel import (
    BackEndMessage,
    ConfigChange,
    FrontEndResponder,
    ShmemMap,
    ShmemUnmap,
)
from vgpud.vhost.wire.header import decode_header
from vgpud.vhost.wire.protocol import (
    F_PROTOCOL_FEATURES,
    HEADER,
    HeaderFlag,
    ProtocolFeature,
)
from vgpud.vhost.wire.replies import ConfigReply, MessageReply, ShmemConfig, U64Reply, VringState
from vgpud.vhost.wire.requests import Request, decode_reply, encode_request

PATIENCE: Final = 30.0
"""Seconds that the back-end may take for anything. It may still be starting, which takes long on a
host that is itself emulated."""

F_VERSION_1: Final = 1 << 32
GUEST_FEATURES: Final = (
    F_VERSION_1 | 1 << Feature.VIRGL | 1 << Feature.RESOURCE_BLOB | 1 << Feature.CONTEXT_INIT
)
"""The features that the guest uses and requires."""

PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.SHMEM
)

_CONFIG_SIZE: Final = 16
_MAX_FDS: Final = 8

_Reply = TypeVar(
    "_Reply",
    U64Reply,
    VringState,
    ConfigReply,
    ShmemConfig,
)


class Rings(Protocol):
    """The guest-physical addresses of the three parts of a virtqueue."""

    @property
    def desc(self) -> int:
        """The descriptor table."""

    @property
    def avail(self) -> int:
        """The available ring."""

    @property
    def used(self) -> int:
        """The used ring."""


class FrontEndGuest(Protocol):
    """The parts of a guest that a front-end shares. Its RAM begins at guest-physical address 0."""

    @property
    def ram(self) -> Fd:
        """The memory file of the guest's RAM."""

    @property
    def ram_size(self) -> int:
        """The size of the RAM in bytes."""

    @property
    def kicks(self) -> Sequence[Fd]:
        """The doorbells' eventfds, one for each queue."""

    @property
    def queue_size(self) -> int:
        """The number of descriptors in each queue."""

    def queue(self, index: int) -> Rings:
        """Return the addresses of a queue."""


class WindowMapper(Protocol):
    """A mapper of files into the host-visible window; raises `HostError` if that is refused."""

    def map(self, fd: Fd, fd_offset: int, offset: int, length: int) -> None:
        """Map part of a file at an offset of the window; the caller closes the file."""

    def unmap(self, offset: int, length: int) -> None:
        """Remove a mapping."""


class FrontEnd:
    """A guest's connection to a back-end; a context manager.

    Raises `PeerError` if the back-end breaks the protocol, refuses or hangs up, and `HostError`
    (ETIMEDOUT) if it does not answer. `window_size` is the size that the back-end reports, in
    bytes. `requests` has all requests of the back-end channel. The back-end must offer all
    `features`.
    """

    def __init__(
        self,
        connection: socket.socket,
        guest: FrontEndGuest,
        *,
        features: int = GUEST_FEATURES,
        patience: float = PATIENCE,
    ) -> None:
        connection.settimeout(patience)
        self._patience = patience
        self._socket = connection
        self._guest = guest
        self._features = features | F_PROTOCOL_FEATURES
        self._back_end: socket.socket | None = None
        self._channel = FrontEndResponder()
        self._channel_fds: list[Fd] = []
        self._watched: dict[int, Callable[[], bool]] = {}
        self._poller: select.poll | None = None
        self._sources: dict[int, Callable[[], bool]] = {}
        self.window: WindowMapper | None = None
        self.window_size = 0
        self.requests: list[BackEndMessage] = []
        with ExitStack() as cleanup:
            cleanup.callback(self._close_fds)
            cleanup.callback(connection.close)
            self._calls = [cleanup.enter_context(eventfd.create()) for _ in guest.kicks]
            self._errors = [cleanup.enter_context(eventfd.create()) for _ in guest.kicks]
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._cleanup.close()

    def introduce(self) -> None:
        """Negotiate what precedes the guest's start: features, back-end channel, window size."""
        offered = self._ask(messages.GetFeatures(), U64Reply).value
        missing = self._features & ~offered
        if missing:
            raise PeerError(f"the back-end does not offer features {missing:#x}")
        protocol = ProtocolFeature(self._ask(messages.GetProtocolFeatures(), U64Reply).value)
        if PROTOCOL_FEATURES & ~protocol:
            raise PeerError(f"the back-end does not offer {PROTOCOL_FEATURES & ~protocol!r}")
        self._send(messages.SetProtocolFeatures(PROTOCOL_FEATURES))
        queues = self._ask(messages.GetQueueNum(), U64Reply).value
        if queues < len(self._calls):
            raise PeerError(f"the back-end has {queues} queues")
        self._back_end, theirs = socket.socketpair()
        self._back_end.settimeout(self._patience)
        self._cleanup.callback(self._back_end.close)
        with Fd(theirs.detach()) as theirs_fd:
            self._send_acknowledged(messages.SetBackendReqFd(), [theirs_fd])
        self._send(messages.SetOwner())
        for index, (call, error) in enumerate(zip(self._calls, self._errors, strict=True)):
            self._send_acknowledged(messages.SetVringCall(index, True), [call])
            self._send_acknowledged(messages.SetVringErr(index, True), [error])
        sizes = self._ask(messages.GetShmemConfig(), ShmemConfig).sizes
        if len(sizes) <= ShmId.HOST_VISIBLE:
            raise PeerError("the back-end has no host-visible window")
        self.window_size = sizes[ShmId.HOST_VISIBLE]

    def start(self) -> None:
        """Start the device for the guest's driver, with the guest's memory and rings."""
        self._ask(messages.GetConfig(0, _CONFIG_SIZE, 0), ConfigReply)
        self._send_acknowledged(messages.SetFeatures(self._features))
        # The front-end chooses the user addresses of guest RAM: here they are its GPAs.
        region = messages.MemRegion(Gpa(0), self._guest.ram_size, Uva(0), 0)
        self._send_acknowledged(messages.SetMemTable((region,)), [self._guest.ram])
        for index, kick in enumerate(self._guest.kicks):
            queue = self._guest.queue(index)
            addresses = Uva(queue.desc), Uva(queue.used), Uva(queue.avail), Gpa(queue.used)
            self._send_acknowledged(messages.SetVringNum(index, self._guest.queue_size))
            self._send_acknowledged(messages.SetVringBase(index, 0))
            self._send_acknowledged(messages.SetVringAddr(index, 0, *addresses))
            self._send_acknowledged(messages.SetVringKick(index, True), [kick])
            self._send_acknowledged(messages.SetVringCall(index, True), [self._calls[index]])
        for index in range(len(self._calls)):
            self._send_acknowledged(messages.SetVringEnable(index, True))

    def stop(self) -> list[int]:
        """Stop the rings, and return how many chains each has taken."""
        bases = []
        for index in range(len(self._calls)):
            self._send_acknowledged(messages.SetVringEnable(index, False))
            bases.append(self._ask(messages.GetVringBase(index), VringState).base)
        return bases

    def watch(self, source: socket.socket | Client, serve: Callable[[], bool]) -> None:
        """Have `wait` call `serve` whenever `source` is readable; it returns False at the end."""
        self._watched[source.fileno()] = serve
        self._poller = None

    def wait(self) -> None:
        """Wait until the device has signalled a queue, and serve the back-end's requests."""
        if self._poller is None:
            self._sources = self._all_sources()
            self._poller = select.poll()
            for source in self._sources:
                self._poller.register(source, select.POLLIN)
        deadline = time.monotonic() + self._patience
        while True:
            left = max(deadline - time.monotonic(), 0)
            ready = self._poller.poll(1000 * left)
            if not ready:
                error = OSError(errno.ETIMEDOUT, "")
                raise HostError(f"waiting for the device for {self._patience:g} s", error)
            signals = [self._sources[source]() for source, _ in ready]
            if any(signals):
                return

    def _all_sources(self) -> dict[int, Callable[[], bool]]:
        """Return the functions to call when a descriptor is readable, by descriptor.

        A function returns True if the device has signalled.
        """
        assert self._back_end is not None
        sources: dict[int, Callable[[], bool]] = {
            self._socket.fileno(): partial(_give_up, "the back-end has hung up"),
            self._back_end.fileno(): partial(self._serve_back_end, self._back_end),
        }
        for index, error in enumerate(self._errors):
            what = f"the back-end has given up queue {index}"
            sources[error.fileno()] = partial(_give_up, what)
        for call in self._calls:
            sources[call.fileno()] = partial(_signalled, call)
        for source, serve in self._watched.items():
            sources[source] = partial(_served, serve)
        return sources

    # The back-end channel

    def _serve_back_end(self, back_end: socket.socket) -> bool:
        """Serve a request if one is complete; return False, as it is no signal of the device."""
        data, fds = _receive(back_end, self._channel.bytes_wanted)
        self._channel_fds += fds
        if not data:
            raise PeerError("the back-end has closed its channel")
        self._channel.receive_data(data)
        received = self._channel.next_request()
        if received is None:
            return False
        self.requests.append(received.message)
        try:
            self._execute(received.message)
            status = 0
        except HostError:
            # The protocol has no error numbers: any value but 0 is a failure.
            status = 1
        finally:
            self._close_fds()
        _send(back_end, self._channel.reply(received, status))
        return False

    def _execute(self, message: BackEndMessage) -> None:
        fds, window = self._channel_fds, self.window
        match message:
            case ConfigChange():
                return
            case ShmemMap(ShmId.HOST_VISIBLE, fd_offset, offset, length, True) if window:
                if len(fds) != 1:
                    raise PeerError(f"{message} came with {len(fds)} descriptors")
                window.map(fds[0], fd_offset, offset, length)
            case ShmemUnmap(ShmId.HOST_VISIBLE, offset, length) if window:
                window.unmap(offset, length)
            case _:
                raise HostError(f"{message}", OSError(errno.EINVAL, ""))

    def _close_fds(self) -> None:
        while self._channel_fds:
            self._channel_fds.pop().close()

    # The main channel

    def _send(self, message: Request, fds: Sequence[Fd] = (), *, need_reply: bool = False) -> None:
        _send(self._socket, encode_request(message, need_reply=need_reply), fds)

    def _ask(self, message: Request, kind: type[_Reply]) -> _Reply:
        self._send(message)
        answer = self._answer(message)
        if not isinstance(answer, kind):
            raise PeerError(f"the back-end answered {message.request_id.name} with {answer}")
        return answer

    def _send_acknowledged(self, message: Request, fds: Sequence[Fd] = ()) -> None:
        assert message.reply is None
        self._send(message, fds, need_reply=True)
        answer = self._answer(message)
        if answer != U64Reply(0):
            raise PeerError(f"the back-end refused {message.request_id.name}: {answer}")

    def _answer(self, message: Request) -> MessageReply:
        request = message.request_id
        header = decode_header(self._exactly(HEADER.size))
        if (header.request, header.flags) != (request, HeaderFlag.VERSION_1 | HeaderFlag.REPLY):
            raise PeerError(f"the answer to {request.name} begins with {header}")
        return decode_reply(request, self._exactly(header.size))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more, fds = _receive(self._socket, size - len(data))
            for fd in fds:  # no answer has descriptors
                fd.close()
            if not more:
                raise PeerError("the back-end has hung up")
            data += more
        return data


def _give_up(what: str) -> NoReturn:
    raise PeerError(what)


def _signalled(call: Fd) -> bool:
    return eventfd.drain(call) > 0


def _served(serve: Callable[[], bool]) -> bool:
    if not serve():
        raise PeerError("the back-end has closed its agent's socket")
    return False


def _send(connection: socket.socket, data: bytes, fds: Sequence[Fd] = ()) -> None:
    try:
        sent = ancillary.send(connection, [data], fds)
        connection.sendall(data[sent:], socket.MSG_NOSIGNAL)
    except OSError as error:
        raise _failed("sending to the back-end", error) from error


def _receive(connection: socket.socket, size: int) -> tuple[bytes, list[Fd]]:
    try:
        received = ancillary.receive(connection, size, max_fds=_MAX_FDS)
    except OSError as error:
        raise _failed("waiting for the back-end", error) from error
    if received.fds_lost:
        received.close()
        raise PeerError("the back-end sent more descriptors than any request has")
    return received.data, received.fds


def _failed(operation: str, error: OSError) -> HostError | PeerError:
    if isinstance(error, TimeoutError):
        return HostError(operation, OSError(errno.ETIMEDOUT, ""), "it is stuck, or too slow")
    if error.errno in {errno.EPIPE, errno.ECONNRESET}:
        return PeerError(f"{operation}: it has hung up")
    return PeerError(f"{operation}: {error.strerror}")
