"""The priority of one thread, and of no other."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from vgpud.unix.thread_priority import NICENESS, lower_thread_priority


def test_one_thread_gives_way_and_the_others_do_not() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ThreadPoolExecutor(1, initializer=lower_thread_priority) as executor:
        ours = executor.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        assert ours.result() == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
