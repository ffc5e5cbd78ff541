"""Front-ends and their memory that come and go, and a daemon that is told to."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import time

import pytest

from tests.gpu import driver
from tests.hostile.siege import MIB, Siege, front_end
from tests.support.until import until
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.protocol import F_LOG_ALL
from vgpud.vhost.wire.requests import encode_request

LEAK = 24 * MIB
"""Memory that a process may have more of after a thousand sessions: the allocator's own."""


# -- Coming and going ------------------------------------------------------------------------------


def test_a_thousand_sessions_leave_nothing_behind(siege: Siege) -> None:
    chance = random.Random(7)

    def session(steps: int) -> None:
        with front_end(siege) as ring:
            fe = ring.fe
            if steps > 0:
                ring.context()
                ring.host_blob(1, 1 * MIB)
                ring.offer(ring.submit([driver.fill(1, 0, 1 * MIB, 7)] * steps))
            if steps > 2:
                fe.backend.answering.clear()
                ring.offer(ring.command(c.ResourceMapBlob, 1, 0))
            if steps > 4:
                fe.gpu_set_socket().close()
            if steps > 6:
                fe.sock.sendall(encode_request(m.SetOwner())[: chance.randrange(12)])

    for _ in range(20):
        session(chance.randrange(8))
    before, threads = siege.status("VmRSS"), siege.status("Threads")
    mapped = siege.status("VmSize")
    for _ in range(80):
        session(chance.randrange(8))
    for _ in range(920):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(siege.socket("a")))  # blocks while there are too many already
            if chance.random() < 0.5:
                sock.sendall(encode_request(m.GetFeatures())[: chance.randrange(13)])
    siege.assert_serving()
    until(lambda: siege.status("Threads") <= threads, 5, "threads are left")
    assert siege.status("VmRSS") < before + LEAK
    assert siege.status("VmSize") < mapped + 1024 * MIB  # each session maps 350 MiB


def test_a_vmm_that_is_restarted_again_and_again_costs_one_session_s_memory(siege: Siege) -> None:
    before = siege.status("VmRSS")
    for _ in range(5):
        with front_end(siege) as ring:
            ring.context()
            ring.host_blob(1, 64 * MIB)
            ring.offer(ring.submit([driver.fill(1, 0, 64 * MIB, 7)] * 50))
            time.sleep(0.1)
    siege.assert_serving()
    assert siege.status("VmRSS") < before + 96 * MIB
    until(lambda: siege.status("VmRSS") < before + LEAK, 3, "memory is not given back")


@pytest.mark.parametrize("busy", ["not reading", "long step"])
def test_sigterm_ends_it_at_once(busy: str) -> None:
    siege = Siege()
    try:
        with front_end(siege) as ring:
            if busy == "long step":
                ring.context()
                ring.host_blob(1, 128 * MIB)
                blit = driver.blit(1, 1, 1, 2, 2, 0, 64 * MIB, 1, 32 * MIB)
                ring.offer(ring.submit([blit] * 4))
            else:
                ring.fe.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        ring.fe.sock.sendall(encode_request(m.GetShmemConfig()) * 100)
            time.sleep(0.1)
            begin = time.monotonic()
            siege.daemon.terminate()
            assert siege.daemon.wait(10) == 0
            assert time.monotonic() - begin < 1
    finally:
        siege.kill()


# -- Memory that goes away -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["rings", "request", "backing", "log"])
def test_truncated_memory_ends_the_session(siege: Siege, what: str) -> None:
    with front_end(siege) as ring:
        fe, fd = ring.fe, ring.ram.regions[0].fd
        ring.context()
        ring.guest_blob(1, mem_entries((64 * MIB, 16 * MIB)))
        slot = ring.submit([driver.fill(1, 0, 16 * MIB, 7)])
        if what == "log":
            log = os.memfd_create("log")
            os.ftruncate(log, 1 << 20)
            fe.ask(m.SetLogBase(1 << 20, 0), [log])
            fe.tell(m.SetFeatures(fe.features | F_LOG_ALL))
            os.ftruncate(log, 0)
            os.close(log)
            ring.offer(slot)
        elif what == "backing":
            os.ftruncate(fd, 64 * MIB)
            ring.offer(slot)
            time.sleep(0.05)
        elif what == "request":
            slot = ring.table([(64 * MIB, 24, 0)])
            os.ftruncate(fd, 64 * MIB)
            ring.offer(slot)
        else:
            os.ftruncate(fd, 0)
        poll = select.poll()
        poll.register(fe.sock, select.POLLRDHUP)
        for _ in range(40):  # it finds out when the guest next wants something
            ring.kick()
            if poll.poll(50):
                break
        else:
            pytest.fail("the session goes on")
        until(lambda: len(siege.warnings) > 0, 2)
    assert len(siege.warnings) <= 2  # zeros in the place of a request are a bad one
