"""The boots of the built host that tests look at, each with the command that it runs.

They are begun when the tests begin and run beside them, because most tests wait for something
else than the processor most of the time; a test that wants one waits until it has ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tests.kernel.build import Host
from tests.kernel.emulators import Machine, Processor
from tests.kernel.machine import Job, run

CHECKS: Final = "sh tests/kernel/checks "
VM_TRIALS: Final = "python3 -m tests.kernel.vm_trials"


@dataclass(frozen=True, slots=True)
class Boot:
    """A command on the patched kernel or on the plain one; see `Machine`."""

    command: str
    processor: Processor = Processor.AMD
    patched: bool = True
    arguments: str = ""
    systemd: bool = False
    nested: bool = False


BOOTS: Final = {
    "amd": Boot(CHECKS + "trials doctor screen demo tests buffers"),
    "amd-plain": Boot(CHECKS + "trials doctor demo", patched=False),
    "amd-nested": Boot(CHECKS + "doctor demo", nested=True),
    "systemd": Boot("python3 -m tests.systemd.checks", systemd=True),
    "intel": Boot(VM_TRIALS, Processor.INTEL),
    "intel-plain": Boot(VM_TRIALS, Processor.INTEL, patched=False),
    "intel-no-self-snoop": Boot(
        VM_TRIALS, Processor.INTEL, patched=False, arguments="clearcpuid=ss"
    ),
    "intel-no-ept": Boot(VM_TRIALS, Processor.INTEL, arguments="kvm_intel.ept=0"),
    # QEMU's in-kernel APIC does not start with what Bochs has of APIC virtualization.
    "intel-qemu": Boot(
        "python3 -m tests.kernel.qemu_trials",
        Processor.INTEL,
        arguments="kvm_intel.enable_apicv=0",
    ),
    "intel-suites": Boot(CHECKS + "tests buffers", Processor.INTEL),
}
"""By name. Those on Intel's processor take minutes, the last one the longest."""


class Boots:
    """The boots of one session of tests. They run on half of the processors, at low priority."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._threads = ThreadPoolExecutor(max((os.cpu_count() or 1) // 2, 1))
        self._jobs: dict[str, Future[Job]] = {}
        self._stop, self._end = os.pipe2(os.O_CLOEXEC)

    def start(self, names: Iterable[str]) -> None:
        """Begin those of these names that have not been, in the order of BOOTS."""
        for name in sorted(set(names) - self._jobs.keys(), key=[*BOOTS].index):
            self._jobs[name] = self._threads.submit(self._run, BOOTS[name])

    def job(self, name: str) -> Job:
        """Return what came of a boot, when it has ended; raise JobError if it did not work."""
        self.start([name])
        return self._jobs[name].result()

    def close(self) -> None:
        """Begin no more, and end those that run."""
        os.close(self._end)  # the end of file is what can be read there
        self._threads.shutdown(cancel_futures=True)
        os.close(self._stop)

    def _run(self, boot: Boot) -> Job:
        kernel = self._host.patched if boot.patched else self._host.plain
        machine = Machine(kernel, boot.processor, boot.arguments, boot.systemd, boot.nested)
        return run(self._host, machine, boot.command, stop=self._stop)
