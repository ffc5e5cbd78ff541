"""Files that make a process wait: of a filesystem whose server does not answer, and a socket whose
peer does not read; and memory in such a file, for system calls that hold a lock meanwhile.

The filesystem is FUSE, served by a process of its own (`python -m tests.support.silent_files DIR`),
which answers until it is stopped. Source: Linux, include/uapi/linux/fuse.h; fuse(4).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

LIMIT = 30.0
"""Seconds after which the server ends, so that a test that waits for it fails instead."""

_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=6Q10I")
_LOOKUP, _GETATTR, _OPEN, _STATFS, _INIT, _OPENDIR = 1, 3, 14, 17, 26, 27
_SIZE = 1 << 20
_MNT_DETACH = 2
_PAGE = 4096
_MAP_PRIVATE = 2


class SilentFilesystem:
    """A mounted filesystem with one file, `path`."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "tests.support.silent_files", str(directory)]
        self.path = directory / "file"
        self._directory = directory
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"
        self._timer = threading.Timer(LIMIT, self.end)
        self._timer.start()

    def silence(self) -> None:
        """Answer nothing from now on."""
        self._server.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """End the server: everything that waits for it goes on, with an error."""
        self._server.kill()
        self._server.wait()

    def close(self) -> None:
        """End it, and unmount it."""
        self._timer.cancel()
        self.end()
        assert self._server.stdout is not None
        self._server.stdout.close()
        _libc().umount2(os.fsencode(self._directory), _MNT_DETACH)


@contextmanager
def silent_filesystem() -> Iterator[SilentFilesystem]:
    """A filesystem, until it is unmounted."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("mounting a FUSE filesystem needs root and /dev/fuse")
    with tempfile.TemporaryDirectory(prefix="vgpud-fuse-") as directory:
        files = SilentFilesystem(Path(directory))
        try:
            yield files
        finally:
            files.close()


class SilentPage:
    """Memory at `address` that a system call waits for as long as it is not given up by `end`."""

    def __init__(self, files: SilentFilesystem) -> None:
        self._files = files
        self._calls: list[threading.Thread] = []
        self._number = os.open(files.path, os.O_RDWR)  # closing it would wait, too
        mmap = _libc().mmap
        mmap.restype = ctypes.c_void_p
        mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        found = mmap(None, _PAGE, 3, _MAP_PRIVATE, self._number, 0)
        assert found not in {None, ctypes.c_void_p(-1).value}
        assert isinstance(found, int)
        self.address = found
        files.silence()

    def call(self, name: str, *arguments: int) -> None:
        """Make a system call of the C library in a thread, where it may wait for the page."""
        longs = [ctypes.c_long(argument) for argument in arguments]
        call = threading.Thread(target=getattr(_libc(), name), args=longs, daemon=True)
        call.start()
        self._calls.append(call)

    def end(self) -> None:
        """Let all calls fail."""
        self._files.end()
        with suppress(OSError):
            os.close(self._number)
        for call in self._calls:
            call.join(LIMIT)


@contextmanager
def silent_page() -> Iterator[SilentPage]:
    """A page, until it is unmapped."""
    with silent_filesystem() as files:
        page = SilentPage(files)
        try:
            yield page
        finally:
            page.end()
            _libc().munmap(ctypes.c_void_p(page.address), ctypes.c_size_t(_PAGE))


@contextmanager
def lingering_socket(seconds: int = int(LIMIT)) -> Iterator[int]:
    """The only descriptor of a TCP socket that waits for its peer when it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
            ours.setblocking(False)
            try:
                while True:
                    ours.send(bytes(1 << 20))
            except BlockingIOError:
                pass
            yield ours.detach()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _serve(directory: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc().mount(b"silent", os.fsencode(directory), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    print("ready", flush=True)
    while True:
        message = os.read(device, 1 << 20)
        _, opcode, unique, node, *_ = _IN.unpack_from(message)
        mode = 0o100666 if node != 1 else 0o040777
        match opcode:
            case _ if opcode == _INIT:
                answer = struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 1 << 16, 1, 16, 0, *[0] * 8)
            case _ if opcode == _LOOKUP:
                answer = struct.pack("=4Q2I", 2, 0, 3600, 0, 0, 0) + _attributes(2, 0o100666)
            case _ if opcode == _GETATTR:
                answer = struct.pack("=Q2I", 0, 0, 0) + _attributes(node, mode)
            case _ if opcode in {_OPEN, _OPENDIR}:
                answer = struct.pack("=Q2I", 0, 0, 0)
            case _:
                continue
        os.write(device, _OUT.pack(_OUT.size + len(answer), 0, unique) + answer)


def _attributes(node: int, mode: int) -> bytes:
    return _ATTR.pack(node, _SIZE, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


if __name__ == "__main__":
    _serve(sys.argv[1])
