"""What this kernel makes of memory slots with KVM_MEM_NON_COHERENT_DMA, as one JSON object.

Runs by itself, with nothing but the standard library: an opinion that is independent of vgpud's own
bindings. Prints {"trials": {what: outcome}, "add_delete_us": median}; an outcome is "ok" or the
name of an errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import statistics
import struct
import time
from typing import Final

SIZE: Final = 1 << 20
GPA: Final = 1 << 30
LOG: Final = 1
READONLY: Final = 2
GUEST_MEMFD: Final = 4
FLAG: Final = 8
KVM_CREATE_VM: Final = 0xAE01
# By the size of the structure, which is part of the number: kvm_userspace_memory_region and the
# one of KVM_SET_USER_MEMORY_REGION2.
CALLS: Final = {"v1": 0x4020AE46, "v2": 0x40A0AE49}
KVM_CREATE_GUEST_MEMFD: Final = 0xC040AED4
ROUNDS: Final = 200


class Trials:
    """A VM at a time, and what became of each thing that was tried in it."""

    def __init__(self) -> None:
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(-1, SIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._vm = -1
        self.outcomes: dict[str, str] = {}

    def new_vm(self) -> None:
        """Start over, with a VM without slots."""
        if self._vm >= 0:
            os.close(self._vm)
        self._vm = fcntl.ioctl(self._kvm, KVM_CREATE_VM, 0)

    def set(
        self,
        call: str,
        flags: int,
        *,
        slot: int = 0,
        gpa: int = GPA,
        size: int = SIZE,
        guest_memfd: int = 0,
    ) -> str:
        """Set a slot (with size 0: delete it) by one of the two calls."""
        region = struct.pack("=IIQQQ", slot, flags, gpa, size, self._address)
        if call == "v2":
            region += struct.pack("=QI", 0, guest_memfd).ljust(128, b"\0")
        return self._outcome(CALLS[call], region)

    def guest_memfd(self) -> int:
        """A guest_memfd of this VM."""
        request = struct.pack("=QQ", SIZE, 0).ljust(64, b"\0")
        fd: int = fcntl.ioctl(self._vm, KVM_CREATE_GUEST_MEMFD, bytearray(request))
        return fd

    def try_(self, what: str, call: str, flags: int, **region: int) -> None:
        """Set a slot and write down what became of it."""
        self.outcomes[f"{call}: {what}"] = self.set(call, flags, **region)

    def _outcome(self, request: int, argument: bytes) -> str:
        try:
            fcntl.ioctl(self._vm, request, argument)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "ok"


def run() -> dict[str, object]:
    """All trials by both calls, and how long it takes to make and to delete a flagged slot."""
    trials = Trials()
    for call in CALLS:
        trials.new_vm()
        trials.try_("fresh slot without the flag", call, 0)
        trials.try_("flag set on a live slot", call, FLAG)
        trials.try_("dirty log set on a live slot", call, LOG)
        trials.try_("slot deleted", call, 0, size=0)
        trials.try_("fresh slot with the flag", call, FLAG)
        trials.try_("the same again", call, FLAG)
        trials.try_("flag cleared on a live slot", call, 0)
        trials.try_("dirty log set on a flagged slot", call, FLAG | LOG)
        trials.try_("dirty log cleared on a flagged slot", call, FLAG)
        trials.try_("flagged slot moved", call, FLAG, gpa=2 * GPA)
        trials.try_("flagged slot over a flagged slot", call, FLAG, slot=1, gpa=2 * GPA)
        trials.try_("flagged slot deleted, flags 0", call, 0, gpa=2 * GPA, size=0)
        trials.try_("nothing deleted", call, 0, gpa=2 * GPA, size=0)
        trials.try_("number used again without the flag", call, 0)
        trials.try_("slot deleted again", call, 0, size=0)
        trials.try_("number used again with the flag", call, FLAG)
        trials.try_("flagged slot deleted, flags 8", call, FLAG, size=0)
        trials.try_("fresh slot with the flag, read-only", call, FLAG | READONLY)
        trials.try_("fresh slot with the next flag", call, FLAG << 1, slot=1, gpa=2 * GPA)
    # The first call has no place for a guest_memfd.
    trials.new_vm()
    file = trials.guest_memfd()
    trials.try_("guest_memfd with the flag", "v2", FLAG | GUEST_MEMFD, guest_memfd=file)
    trials.try_("guest_memfd without the flag", "v2", GUEST_MEMFD, guest_memfd=file)
    trials.new_vm()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        trials.set("v1", FLAG)
        trials.set("v1", 0, size=0)
        times.append(time.perf_counter() - start)
    median = statistics.median(times) * 1e6
    return {"trials": trials.outcomes, "add_delete_us": round(median, 1)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
