"""The front-end's end of the back-end's channel, for tests: maps what it is asked to, and says so.

Used by `tests.support.front_end`. SHMEM_MAP really maps the fd, so that a test can look into the
device's BAR through the same pages as a guest would. Of vgpud it takes the codec of messages, and
its socket and mappings are its own on purpose, as those of the front-end are.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable, Sequence

from tests.support.ring_driver import TIMEOUT
from vgpud.errors import PeerError
from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.back_end_channel import (
    BackEndMessage,
    ConfigChange,
    FrontEndResponder,
    ShmemMap,
    ShmemUnmap,
    Withdrawn,
)

BAR_GPA = 0x40_0000_0000
"""Where the guest sees the shared-memory region."""

BAR_UVA = 0x6000_0000_0000


def receive(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Up to `size` bytes and the fds that came with them; no bytes at the end of the stream."""
    fds = array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(
        size, socket.CMSG_SPACE(32 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for _, _, payload in ancillary:
        fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    assert not flags & socket.MSG_CTRUNC
    return data, list(fds)


class Bar:
    """One shared-memory region, made of what the back-end mapped there; `size` in bytes."""

    def __init__(self, shmid: int, size: int) -> None:
        self.shmid, self.size = shmid, size
        self.mappings: dict[int, tuple[mmap.mmap, ShmemMap, int]] = {}

    def map(self, message: ShmemMap, fds: Sequence[int]) -> bool:
        """Map, as strictly as QEMU does; whether it could be done. Keeps an fd of its own."""
        start, length = message.shm_offset, message.length
        fits = length and start + length <= self.size and message.shmid == self.shmid
        overlaps = any(
            start < other + mapped.length and other < start + length
            for other, (_, mapped, _) in self.mappings.items()
        )
        if not fits or overlaps or len(fds) != 1:
            return False
        if message.fd_offset + length > os.fstat(fds[0]).st_size:
            return False
        access = mmap.ACCESS_WRITE if message.writable else mmap.ACCESS_READ
        view = mmap.mmap(fds[0], length, access=access, offset=message.fd_offset)
        self.mappings[start] = (view, message, os.dup(fds[0]))
        return True

    def unmap(self, message: ShmemUnmap) -> bool:
        """Unmap one whole mapping; whether it could be done."""
        found = self.mappings.get(message.shm_offset)
        if not found or found[1].length != message.length or message.shmid != self.shmid:
            return False
        del self.mappings[message.shm_offset]
        found[0].close()
        os.close(found[2])
        return True

    def read(self, offset: int, length: int) -> bytes:
        """What the guest would read; a KeyError where nothing is mapped."""
        view, at = self._find(offset, length)
        return view[at : at + length]

    def write(self, offset: int, data: bytes) -> None:
        """What the guest would write; a KeyError where nothing is mapped."""
        view, at = self._find(offset, len(data))
        view[at : at + len(data)] = data

    def regions(self) -> list[tuple[m.MemRegion, int]]:
        """The mappings as guest memory, with their fds, as they show in QEMU's memory table."""
        return [
            (
                m.MemRegion(
                    Gpa(BAR_GPA + offset),
                    message.length,
                    Uva(BAR_UVA + offset),
                    message.fd_offset,
                ),
                fd,
            )
            for offset, (_, message, fd) in sorted(self.mappings.items())
        ]

    def close(self) -> None:
        """Unmap everything."""
        for _, message, _ in list(self.mappings.values()):
            self.unmap(ShmemUnmap(message.shmid, message.shm_offset, message.length))

    def _find(self, offset: int, length: int) -> tuple[mmap.mmap, int]:
        for start, (view, message, _) in self.mappings.items():
            if start <= offset and offset + length <= start + message.length:
                return view, offset - start
        raise KeyError(f"nothing is mapped at {offset:#x}..{offset + length:#x}")


class BackendRequests:
    """Serves one channel at a time from a thread; `messages` has all that was ever asked.

    `mapped` is called after a map or an unmap and before its answer. `refuse_maps` answers maps
    with failure. `answering` is cleared by a test that wants answers to be late.
    """

    def __init__(self, mapped: Callable[[], None]) -> None:
        self.bar: Bar | None = None
        self.refuse_maps = False
        self.messages: list[BackEndMessage] = []
        self.answering = threading.Event()
        self.answering.set()
        self._mapped = mapped
        self._heard = threading.Condition()  # messages has grown
        self._sock: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def serve(self, sock: socket.socket) -> None:
        """Answer what comes on `sock`, which it closes in the end."""
        assert self._sock is None
        self._sock = sock
        self._thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
        self._thread.start()

    def wait(self, message: BackEndMessage, count: int = 1) -> None:
        """Wait until the back-end has asked for `message` so many times."""
        with self._heard:
            assert self._heard.wait_for(lambda: self.messages.count(message) >= count, TIMEOUT), (
                f"no {message}, but {self.messages}"
            )

    def close(self) -> None:
        """Hang up and unmap everything; raises what went wrong before."""
        sock, self._sock = self._sock, None
        error = self._error
        if sock and self._thread:
            self.answering.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            self._thread.join(TIMEOUT)
            sock.close()
        if self.bar:
            self.bar.close()
            self.bar = None
        self._error = None
        if error:
            raise error

    def _run(self, sock: socket.socket) -> None:
        channel = FrontEndResponder()
        fds: list[int] = []
        try:
            while True:
                data, more = receive(sock, channel.bytes_wanted)
                if not data:
                    return
                channel.receive_data(data)
                fds += more
                if received := channel.next_request():
                    done = self._execute(received.message, fds)
                    while fds:
                        os.close(fds.pop())
                    self._note(received.message)
                    self.answering.wait(TIMEOUT)
                    sock.sendall(channel.reply(received, 0 if done else 1))
        except ConnectionError:
            return  # the back-end is gone, on this channel or the main one
        except (OSError, AssertionError, PeerError) as error:
            self._error = error
        finally:
            while fds:
                os.close(fds.pop())

    def _execute(self, message: BackEndMessage, fds: Sequence[int]) -> bool:
        match message:
            case ShmemMap():
                done = not self.refuse_maps and bool(self.bar and self.bar.map(message, fds))
            case ShmemUnmap():
                done = bool(self.bar and self.bar.unmap(message))
            case ConfigChange():
                return not fds
            case Withdrawn():  # unknown to a front-end, and so without any effect
                return False
        if done:
            self._mapped()
        return done

    def _note(self, message: BackEndMessage) -> None:
        with self._heard:
            self.messages.append(message)
            self._heard.notify_all()
