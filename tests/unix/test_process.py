"""What this process uses, compared with what it has just taken."""

from __future__ import annotations

import mmap
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

from vgpud.unix import process as own_process


def test_memory_and_descriptors_are_seen_as_they_are_taken() -> None:
    before = own_process.look()
    # Mapped anew: what malloc gives may be resident already.
    taken = mmap.mmap(-1, 32 << 20)
    taken.write(bytes(len(taken)))
    fd = os.dup(0)
    after = own_process.look()
    os.close(fd)
    assert before.open_fds is not None
    assert after.open_fds == before.open_fds + 1
    assert before.resident_bytes is not None
    assert after.resident_bytes is not None
    assert after.resident_bytes >= before.resident_bytes + len(taken) // 2
    taken.close()
    assert after.cpu_seconds >= before.cpu_seconds > 0
    assert after.max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_one_thread_gives_way_and_the_others_do_not() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ThreadPoolExecutor(1, initializer=own_process.give_way) as executor:
        ours = executor.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        assert ours.result() == own_process.NICENESS
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
