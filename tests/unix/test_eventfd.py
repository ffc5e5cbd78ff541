"""Eventfds of a front-end that blocks them after it has sent them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vgpud.unix import eventfd
from vgpud.unix.fd import Fd

FULL = (1 << 64) - 2

pytestmark = pytest.mark.timeout(10)


@pytest.fixture
def fd() -> Iterator[Fd]:
    """An eventfd in use, which the front-end has made blocking again: it shares the flag."""
    with Fd(os.eventfd(0, os.EFD_CLOEXEC)) as fd:
        adopted = eventfd.adopt(fd)
        os.set_blocking(fd.fileno(), True)
        yield adopted


def test_a_count_of_zero_does_not_block(fd: Fd) -> None:
    assert eventfd.drain(fd) == 0
    eventfd.signal(fd)
    eventfd.signal(fd)
    assert eventfd.drain(fd) == 2
    assert eventfd.drain(fd) == 0


def test_a_full_count_does_not_block(fd: Fd) -> None:
    os.eventfd_write(fd.fileno(), FULL)
    eventfd.signal(fd)
    assert eventfd.drain(fd) == FULL
