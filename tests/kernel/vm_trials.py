"""What KVM writes into its page tables for slots of scratch VMs and of vgpud's demo, as JSON; runs
in the built host, on an Intel processor.

    python3 -m tests.kernel.vm_trials

Each VM has RAM in a slot without flags, and a window in another slot; the guest touches both. One
process does it all, and forks the daemon, since a start takes an emulated processor half a minute.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import mmap
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from tests.kernel.ept import Entry, memory_types, traced
from tests.kernel.forked_daemon import FORKING
from tests.support.kvm_host import RAM_SIZE, Poker
from vgpud.cli import demo
from vgpud.cli.main import main as vgpud
from vgpud.errors import HostError
from vgpud.microvm import boot, service
from vgpud.native.arrays import address_of
from vgpud.uapi.kvm import Kvm, Quirk
from vgpud.uapi.memslot import SlotFlag

WINDOW: Final = 0x4_0000
WINDOW_SIZE: Final = 0x1_0000
TRIALS: Final = {
    "unflagged": (SlotFlag.NONE, False),
    "flagged": (SlotFlag.NON_COHERENT_DMA, False),
    "quirk disabled": (SlotFlag.NONE, True),
    "flagged, quirk disabled": (SlotFlag.NON_COHERENT_DMA, True),
}


def trial(kvm: Kvm, flags: SlotFlag, *, disable_quirk: bool) -> dict[str, Any]:
    """Return what the entries of a VM's RAM and window are, or what KVM refused."""
    memory = np.frombuffer(mmap.mmap(-1, WINDOW_SIZE), np.uint8)
    poker = Poker(kvm)
    try:
        if disable_quirk:
            poker.vm.disable_quirks(Quirk.IGNORE_GUEST_PAT)
        poker.vm.set_user_memory_region(1, flags, WINDOW, memory.nbytes, address_of(memory))
        with traced() as entries:
            poker.poke(WINDOW, 0x42)
        assert memory[0] == 0x42
    except HostError as error:
        return {"refused": errno.errorcode[error.errno or 0]}
    finally:
        poker.close()
    return found(entries, RAM_SIZE, WINDOW, WINDOW + WINDOW_SIZE)


def found(entries: list[Entry], ram_end: int, start: int, end: int) -> dict[str, Any]:
    """Return the memory types of RAM and window, and which entries of the host's PAT they would
    select as shadow page tables."""
    return {
        "ram": memory_types(entries, 0, ram_end),
        "window": memory_types(entries, start, end),
        "host_pat_entries": sorted({entry.host_pat_entry for entry in entries}),
    }


def traced_demo() -> dict[str, Any]:
    """Return the demo's own report, and the entries of its slots."""
    with patch.object(service, "subprocess", FORKING), traced() as entries:
        done = demo.run(Path("out"))
    end = boot.WINDOW_GPA + boot.WINDOW_LIMIT
    return {**done.to_json(), "entries": found(entries, boot.RAM_SIZE, boot.WINDOW_GPA, end)}


def doctor() -> Any:
    """Return the report of `vgpud doctor --json`."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert vgpud(["doctor", "--json"]) == 0
    return json.loads(said.getvalue())


def main() -> None:
    with Kvm.open() as kvm:
        trials = {
            name: trial(kvm, flags, disable_quirk=quirk) for name, (flags, quirk) in TRIALS.items()
        }
    cpu = Path("/proc/cpuinfo").read_text()
    report = {
        "cpu": cpu.split("\n\n")[0],
        "trials": trials,
        "doctor": doctor(),
        "demo": traced_demo(),
    }
    Path("out/vm_trials.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
