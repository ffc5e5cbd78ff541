"""The boots of the built host that tests look at, each with the command that it runs.

All that the chosen tests name begin with the first test that wants one, beside each other. Not
earlier: beside tests that measure time they would disturb these, even at a low priority.
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
    "intel-suites": Boot(CHECKS + "suites", Processor.INTEL),
    "amd": Boot(CHECKS + "trials doctor screen demo suites"),
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
}
"""By name, those that take longest first."""


class Boots:
    """The boots of one session of tests, of which it is going to want those of these names."""

    def __init__(self, host: Host, names: Iterable[str]) -> None:
        self._host = host
        self._threads = ThreadPoolExecutor(os.cpu_count())
        self._names = set(names)
        self._jobs: dict[str, Future[Job]] = {}
        self._stop, self._end = os.pipe2(os.O_CLOEXEC)

    def start(self) -> None:
        """Begin those that have not been, in the order of BOOTS."""
        for name in sorted(self._names - self._jobs.keys(), key=[*BOOTS].index):
            self._jobs[name] = self._threads.submit(self._run, BOOTS[name])

    def job(self, name: str) -> Job:
        """Return what came of a boot, when it has ended; raise JobError if it did not work."""
        self._names.add(name)
        self.start()
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
