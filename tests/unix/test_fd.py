"""Owners of file descriptors, eventfds and memory files."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
from pathlib import Path

import pytest

from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd

PAGE = mmap.PAGESIZE


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_an_owner_closes_once() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    with Fd(number) as fd:
        assert fd.fileno() == number
        assert fd.closed is False
    assert not _open(number)
    assert bool(fd.closed)
    reused = os.open("/dev/null", os.O_RDONLY)
    assert reused == number
    fd.close()
    assert _open(reused)
    os.close(reused)
    for use in (fd.fileno, fd.take, fd.dup):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_taking_ends_the_ownership() -> None:
    with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
        number = fd.take()
    assert _open(number)
    os.close(number)


def test_a_duplicate_is_another_owner_and_not_inherited() -> None:
    with Fd(os.open("/dev/null", os.O_RDONLY)) as fd, fd.dup() as other:
        fd.close()
        assert _open(other.fileno())
        assert not os.get_inheritable(other.fileno())


def test_what_is_no_descriptor() -> None:
    with pytest.raises(ValueError, match="-1"):
        Fd(-1)


def test_a_forgotten_owner_is_told_of_and_closed() -> None:
    fd = Fd(os.open("/dev/null", os.O_RDONLY))
    number = fd.fileno()
    with pytest.warns(ResourceWarning, match=f"descriptor {number} was never closed"):
        del fd
    assert not _open(number)


def test_an_eventfd_counts() -> None:
    with eventfd.create() as event:
        assert eventfd.drain(event) == 0
        eventfd.signal(event)
        eventfd.signal(event)
        assert eventfd.drain(event) == 2
        assert eventfd.drain(event) == 0
        assert not os.get_inheritable(event.fileno())


def test_a_full_eventfd_is_signalled_already_and_does_not_block() -> None:
    with eventfd.create() as event:
        os.eventfd_write(event.fileno(), (1 << 64) - 2)
        eventfd.signal(event)
        assert eventfd.drain(event) == (1 << 64) - 2
        assert eventfd.drain(event) == 0


def test_a_memory_file_keeps_its_size() -> None:
    with memfd.create("blob", 5 * PAGE) as fd:
        number = fd.fileno()
        assert os.fstat(number).st_size == 5 * PAGE
        assert not os.get_inheritable(number)
        for size in (4 * PAGE, 6 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(number, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert Path(f"/proc/self/fd/{number}").readlink().name.startswith("memfd:blob")


def test_punched_pages_are_given_back_and_read_as_zeros() -> None:
    with memfd.create("window", 16 * PAGE) as fd:
        assert memfd.allocated_bytes(fd) == 0
        os.pwrite(fd.fileno(), b"x" * 16 * PAGE, 0)
        assert memfd.allocated_bytes(fd) == 16 * PAGE
        memfd.punch_hole(fd, 4 * PAGE, 8 * PAGE)
        assert memfd.allocated_bytes(fd) == 8 * PAGE
        assert os.pread(fd.fileno(), 16 * PAGE, 0) == (
            b"x" * 4 * PAGE + bytes(8 * PAGE) + b"x" * 4 * PAGE
        )
        memfd.punch_hole(fd, 10, 20)
        assert os.pread(fd.fileno(), 40, 0) == b"x" * 10 + bytes(20) + b"x" * 10


def test_what_the_system_refuses_is_a_host_error() -> None:
    with memfd.create("window", PAGE) as fd:
        for offset, length in ((0, 0), (-1, 4), (1 << 63, 4), (0, 1 << 63)):
            with pytest.raises((HostError, OverflowError)):
                memfd.punch_hole(fd, offset, length)
    refused = pytest.raises(HostError, match="punching 5 bytes at 0x7")
    with Fd(os.open("/dev/null", os.O_RDWR)) as null, refused:
        memfd.punch_hole(null, 7, 5)
    with pytest.raises(HostError):
        memfd.create("n" * 250, PAGE)
    with pytest.raises(HostError):
        memfd.create("negative", -1)


def test_running_out_of_descriptors_comes_with_advice() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(HostError, match="raise the limit of open files") as caught:
            memfd.create("blob", PAGE)
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(HostError, match="raise the limit"):
            eventfd.create()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
