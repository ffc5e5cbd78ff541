"""QEMU's own C back-end, vhost-user-gpu, as a peer to compare with.

It serves one front-end on one socket and ends with it.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.rig.build import Rig

PROGRAM: Final = "/usr/lib/qemu/vhost-user-gpu"
LISTEN_S: Final = 10.0


@contextlib.contextmanager
def c_back_end(rig: Rig, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run vhost-user-gpu on `socket` (below /tmp); it listens when this enters."""
    process = subprocess.Popen(
        rig.chroot.command(PROGRAM, f"--socket-path={socket}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + LISTEN_S
        while not socket.exists():
            assert process.poll() is None, f"{PROGRAM} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{PROGRAM} does not listen on {socket}"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()
