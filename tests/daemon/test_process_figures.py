"""The process's figures, compared with what the test has just allocated."""

from __future__ import annotations

import mmap
import os
import resource

from vgpud.daemon.process_figures import own_figures


def test_memory_and_descriptors_are_seen_as_they_are_taken() -> None:
    before = own_figures()
    # Mapped anew: what malloc gives may be resident already.
    taken = mmap.mmap(-1, 32 << 20)
    taken.write(bytes(len(taken)))
    fd = os.dup(0)
    after = own_figures()
    os.close(fd)
    assert before.open_fds is not None
    assert after.open_fds == before.open_fds + 1
    assert before.resident_bytes is not None
    assert after.resident_bytes is not None
    assert after.resident_bytes >= before.resident_bytes + len(taken) // 2
    taken.close()
    assert after.cpu_seconds >= before.cpu_seconds > 0
    assert after.max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
