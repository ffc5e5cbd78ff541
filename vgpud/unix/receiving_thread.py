"""Receiving from a socket that a peer has passed, in a thread.

The peer may have kept a duplicate of the end that it has passed, and receive from that: into memory
that never comes, in a thread that has the socket's lock meanwhile. Then recvmsg(2) waits for that
lock, with MSG_DONTWAIT, too. So it is this thread that waits, and not the event loop. Source:
Linux, net/unix/af_unix.c, unix_stream_read_generic() and `iolock`.
"""

from __future__ import annotations

import _thread
import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from vgpud.errors import HostError
from vgpud.unix import ancillary, eventfd
from vgpud.unix.ancillary import ReceivedMessage

Arrived: TypeAlias = ReceivedMessage | OSError

_CHUNK: Final = 4096
_PAUSE: Final = 0.001
"""Seconds until the next try when another process has received what poll(2) had announced, which it
may go on doing."""


class ReceivingThread:
    """Receives from a non-blocking socket, and calls `deliver` on the event loop with each result.

    It receives no more before `receive` is called again, so that no more than one message waits. An
    OSError, or no bytes, is the last. The socket may be closed once `join` has returned. Raises
    HostError.
    """

    def __init__(self, sock: socket.socket, deliver: Callable[[Arrived], None]) -> None:
        self._sock = sock
        self._number = sock.fileno()
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(1)
        self._stopping = False
        self._stop = eventfd.create()
        self._ended = threading.Lock()
        self._ended.acquire()
        try:
            # threading.Thread would wait until the new thread runs, which a front-end can have over
            # and over again.
            _thread.start_new_thread(self._work, ())
        except RuntimeError as error:
            self._stop.close()
            raise HostError("starting a thread", OSError(str(error))) from error

    def receive(self) -> None:
        """Receive the next message."""
        self._wanted.release()

    def stop(self) -> None:
        """Receive no more; what has been received may still be delivered."""
        self._stopping = True
        eventfd.signal(self._stop)
        self._wanted.release()

    def join(self) -> None:
        """Wait until the thread has ended after `stop`, which takes as long as the peer wants."""
        with self._ended:
            self._stop.close()

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self._ended.release()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._number, select.POLLIN)
        poll.register(self._stop.fileno(), select.POLLIN)
        more = True
        while more:
            self._wanted.acquire()
            arrived = self._receive(poll)
            if arrived is None:
                return
            more = isinstance(arrived, ReceivedMessage) and bool(arrived.data)
            try:
                self._loop.call_soon_threadsafe(self._deliver, arrived)
            except RuntimeError:  # the loop has ended
                if isinstance(arrived, ReceivedMessage):
                    arrived.close()
                return

    def _receive(self, poll: select.poll) -> Arrived | None:
        while True:
            poll.poll()
            if self._stopping:
                return None
            try:
                # For descriptors without room, the kernel closes the files within recvmsg.
                return ancillary.receive(
                    self._sock, _CHUNK, max_fds=ancillary.MAX_FDS, flags=socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                time.sleep(_PAUSE)
            except OSError as error:
                return error.with_traceback(None)
