"""The file of a unix socket: making its directory, binding, removing it, replacing a stale one.

A path may lead through a directory that another user owns and changes meanwhile. So no path is
looked up twice: the file has its mode from the start, and is removed through a descriptor of its
directory. Source: unix(7), bind(2) and "Pathname socket ownership and permissions"; unshare(2),
CLONE_FS; net/unix/af_unix.c, unix_bind_bsd.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Final

from vgpud.errors import ConfigError, HostError
from vgpud.unix.fd import Fd, SharedFd

log = logging.getLogger(__name__)

CLIENTS: Final = "clients"
"""The directory, next to the control socket, where clients bind their own sockets."""
DIRECTORY_MODE: Final = 0o755
"""All users may see the sockets; the mode of each socket decides who may connect."""

_CLONE_FS: Final = 0x200


class SocketFile:
    """The file to which a socket of this process was bound, by `bind`."""

    def __init__(self, directory: Fd, name: str) -> None:
        self._directory = directory
        self._name = name
        self._inode = self._status().st_ino

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it; a second call does nothing."""
        if self._directory.closed:
            return
        try:
            if self._status().st_ino == self._inode:
                os.unlink(self._name, dir_fd=self._directory.fileno())
        except OSError as error:
            log.debug("socket not removed name=%s: %s", self._name, error.strerror)
        finally:
            self._directory.close()

    def change_group(self, gid: int) -> None:
        """Change the group of the file, and of nothing that may have replaced it. Raises OSError.

        A socket that does not listen yet can't be connected to meanwhile.
        """
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        with Fd(os.open(self._name, flags, dir_fd=self._directory.fileno())) as file:
            found = os.fstat(file.fileno())
            ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()
            if not ours or found.st_ino != self._inode:
                raise OSError(errno.ESTALE, "")
            # By this name, because fchown(2) takes no O_PATH descriptor.
            os.chown(f"/proc/self/fd/{file.fileno()}", -1, gid)

    def _status(self) -> os.stat_result:
        return os.stat(self._name, dir_fd=self._directory.fileno(), follow_symlinks=False)


def bind(sock: socket.socket, path: Path, mode: int) -> SocketFile:
    """Bind a socket to a new file at `path` with exactly this mode, whatever the umask.

    Raises OSError.
    """
    directory = SharedFd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        # The file gets this mode less the umask, and sockets have mode 0777 by default.
        os.fchmod(sock.fileno(), mode)
        _without_umask(sock, os.fspath(path))
        return SocketFile(directory, path.name)
    except BaseException:
        directory.close()
        raise


def _without_umask(sock: socket.socket, path: str) -> None:
    if len([*Path("/proc/self/task").iterdir()]) == 1:
        _bind_with_umask_0(sock, path)
        return
    # Other threads may create files meanwhile, so a thread with an umask of its own binds.
    raised: list[BaseException] = []

    def run() -> None:
        import ctypes  # noqa: PLC0415 - programs with one thread don't need it

        try:
            # A container's seccomp filter may refuse this. The umask is then the process's.
            ctypes.CDLL(None).unshare(_CLONE_FS)
            _bind_with_umask_0(sock, path)
        except BaseException as error:  # it is raised again
            raised.append(error)

    thread = threading.Thread(target=run, name="bind")
    thread.start()
    thread.join()
    if raised:
        raise raised.pop().with_traceback(None)


def _bind_with_umask_0(sock: socket.socket, path: str) -> None:
    umask = os.umask(0)
    try:
        sock.bind(path)
    finally:
        os.umask(umask)


def make_directory(path: Path) -> None:
    """Make the directory of a socket if it does not exist. Raises HostError."""
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        advice = "set daemon.runtime_dir to a directory that this user can write to"
        raise HostError(f"making {path}", error, advice) from error


def remove_stale(path: Path, kind: int) -> None:
    """Remove the file of a socket of this kind (SOCK_STREAM, SOCK_DGRAM) that no process has open.

    Raises `ConfigError` if a process has it open, or if the file is no socket, and OSError.
    """
    with Fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        try:
            found = os.stat(path.name, dir_fd=directory.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(f"{path} exists and is no socket; remove it or choose another path")
        if not is_stale(directory, path.name, kind):
            raise ConfigError(
                f"{path} is in use by another process; stop it or choose another path"
            )
        os.unlink(path.name, dir_fd=directory.fileno())


def open_socket(name: str, uid: int, directory: Fd | None = None) -> Fd | None:
    """Return the file of a socket that belongs to a user, opened for its path only, or None.

    A relative name is looked up in `directory`. The descriptor is closed with its last user.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = SharedFd(
            os.open(name, flags, dir_fd=directory.fileno() if directory is not None else None)
        )
    except OSError:
        return None
    return file if is_socket_of(file, uid) else None


def is_socket_of(file: Fd, uid: int) -> bool:
    """Return whether a file is a socket of this user, and still has a name."""
    found = os.fstat(file.fileno())
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == uid and found.st_nlink > 0


def is_stale(directory: Fd, name: str, kind: int) -> bool:
    """Return whether no process has the socket file of this name open. Raises OSError."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        number = probe.connect_ex(f"/proc/self/fd/{directory.fileno()}/{name}")
    return number == errno.ECONNREFUSED
