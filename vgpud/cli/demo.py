"""`vgpud demo`: the four steps of non-coherent DMA on this machine, each with its evidence.

The daemon runs in a process of its own, a micro-VM on /dev/kvm in this one. The evidence is what
these two did, not what they should have done.
"""

from __future__ import annotations

import textwrap
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgpud.cli.output_file import write_file
from vgpud.coherency import kvm_mode
from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import Finding
from vgpud.coherency.plan import Plan, VmSetup
from vgpud.coherency.planner import plan
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.probes import system as probe_system
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.slot_policy import DEFAULT_RULE, GuestPat, MemoryType, SlotOwner
from vgpud.errors import HostError, VgpudError
from vgpud.gpu.display import png
from vgpud.gpu.memory_types import MAP_INFO
from vgpud.gpu.wire.protocol import MapInfo
from vgpud.memory.backing import HostBacking
from vgpud.microvm.guest_code import Mapped, Pat
from vgpud.microvm.service import DEVICE, Service, configuration
from vgpud.microvm.slots import Accepted
from vgpud.microvm.vmm import Attach, Outcome, run_front_end
from vgpud.uapi.memslot import SlotFlag

PICTURE: Final = "vgpud-demo.png"
WIDTH: Final = 100
"""The width of the text in columns."""

_TYPES: Final = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}
"""The memory types of PAT entries. Source: Intel SDM vol. 3, "Page Attribute Table (PAT)"."""
_WANTED: Final = {MemoryType.WB: "WB", MemoryType.UC: "UC-", MemoryType.WC: "WC"}

_MAP_INFO: Final = {int(value): value.name for value in MapInfo}

Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Step:
    """One of the four steps; `ok` says whether it held, `evidence` shows it, by name."""

    step: int
    name: str
    ok: bool
    evidence: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Demo:
    """A whole run."""

    steps: tuple[Step, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every step held."""
        return all(step.ok for step in self.steps)

    def to_json(self) -> Json:
        """Return the run as JSON values."""
        return {"steps": [asdict(step) for step in self.steps], "seconds": self.seconds}

    def text(self) -> str:
        """Return the run as text for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for step in self.steps:
            yield f"{step.step}. {step.name}: {'yes' if step.ok else 'NO'}"
            for name, value in step.evidence.items():
                values = value if isinstance(value, list) else [value]
                for index, item in enumerate(values):
                    label = name if index == 0 else ""
                    yield from textwrap.wrap(
                        str(item),
                        WIDTH,
                        initial_indent=f"     {label:<12} ",
                        subsequent_indent=" " * 20,
                        break_on_hyphens=False,
                        break_long_words=False,
                    )
        count = sum(step.ok for step in self.steps)
        yield f"{count} of {len(self.steps)} steps held, in {self.seconds:.1f} s"


def run(out: Path | None = None) -> Demo:
    """Run the demo; write the picture to the directory `out`, which is created if missing.

    Raises `VgpudError` if there is no KVM, and with the daemon's log if the run fails; `HostError`
    if the picture can't be written.
    """
    start = time.monotonic()
    if out is not None:  # before the run, so that a bad path fails at once
        _make(out)
    facts = probe_kvm.probe()
    if facts.state is not DeviceAccess.USABLE:
        raise VgpudError(f"{facts.problem}; {facts.advice}" if facts.advice else facts.problem)
    finding = kvm_mode.of_own_vm(facts)
    # The micro-VM's guest has its MTRRs at write-back: machine.py sets them.
    chosen = plan(Facts(finding.mode, HostBacking.RAM_WB, GuestMtrr.WB), DEFAULT_RULE)
    disable_quirk = VmSetup.DISABLE_IGNORE_GUEST_PAT in chosen.vm_setup
    with Service(configuration(GuestPat.AUTO, slots=SlotOwner.AGENT)) as service:
        try:
            outcome = run_front_end(
                service.connect(),
                agent=Attach(service.control, DEVICE),
                disable_quirk=disable_quirk,
            )
        except VgpudError as error:
            service.end()
            log_end = "\n".join(service.log[-10:])
            raise VgpudError(f"{error}\nthe daemon's log:\n{log_end}") from error
        status = service.end()
        log = [line for line in service.log if " plan device=" in line]
    steps = (
        programmed(chosen, log, status),
        answered(finding, facts, chosen, outcome),
        written(chosen, outcome),
        moved(outcome, _save(outcome, out)),
    )
    return Demo(steps, round(time.monotonic() - start, 3))


def programmed(chosen: Plan, log: list[str], status: int) -> Step:
    """Check step 1: the DMA engine is programmed to load and store as the plan says."""
    agreed = f" map_info={MAP_INFO[chosen.memory_type].name}: {chosen.reason}"
    loads = "after flushing the lines they are in" if chosen.flush_before_read else "plain"
    stores = "past the caches (non-temporal)" if chosen.non_temporal_write else "plain"
    ok = (
        status == 0
        and len(log) == 1
        and log[0].endswith(agreed)
        and not chosen.device_snoops
        and chosen.flush_before_read
        and chosen.non_temporal_write
    )
    return Step(
        1,
        "The daemon has the device not snoop the buffer",
        ok,
        {
            "plan": chosen.reason,
            "loads": loads,
            "stores": stores,
            "processor": ["clflush", *probe_system.cpu().flush],
            "daemon": log[0].partition(" plan ")[2] if log else "it logged no plan",
        },
    )


def answered(finding: Finding, facts: KvmFacts, chosen: Plan, outcome: Outcome) -> Step:
    """Check step 2: the device answered with the plan's memory type."""
    evidence: dict[str, Json] = {
        "map_info": [
            f"{_MAP_INFO.get(mapped.map_info, 'unknown')} ({mapped.map_info}) answered to"
            f" RESOURCE_MAP_BLOB {mapped.resource_id}"
            for mapped in outcome.mapped
        ],
        "kvm": f"{finding.mode}: {finding.reason}",
    }
    if not facts.non_coherent_dma_flag:
        evidence["flag"] = f"KVM_MEM_NON_COHERENT_DMA: {facts.flag_trial or 'could not be tried'}"
    if not chosen.slot_flags:
        evidence["instead"] = chosen.reason
    if chosen.memory_type is MemoryType.WB:
        evidence["correct as"] = (
            "it holds whether KVM honours the guest's PAT or not: the engine flushes each line"
            " before it reads it, whichever side made it dirty, and leaves no line that it wrote"
            " in a cache"
        )
    ok = bool(outcome.mapped) and all(
        mapped.map_info == MAP_INFO[chosen.memory_type] for mapped in outcome.mapped
    )
    return Step(2, "The guest is told a memory type that is true", ok, evidence)


def written(chosen: Plan, outcome: Outcome) -> Step:
    """Check step 3: the guest's writes, without a flush, are in the slot's memory."""
    wanted = _WANTED[chosen.memory_type]
    types = [_type(outcome.pat, mapped) for mapped in outcome.mapped]
    seen = _crc(outcome.seen)
    ok = (
        outcome.pat.read_back == outcome.pat.written
        and bool(outcome.slots)
        and all(slot.flags == chosen.slot_flags for slot in outcome.slots)
        and all(type_ == wanted for type_ in types)
        and bool(outcome.rounds)
        and seen == outcome.rounds[-1].written.crc
    )
    return Step(
        3,
        "The guest writes through it without flushing",
        ok,
        {
            **({"tried": [_accepted(slot) for slot in outcome.trials]} if outcome.trials else {}),
            "slots": [_accepted(slot) for slot in outcome.slots],
            "set up": [str(setup) for setup in chosen.vm_setup] or "nothing but the slots",
            "pat": f"written {outcome.pat.written:#018x}, read back {outcome.pat.read_back:#018x}",
            "mapped": [
                f"blob {mapped.resource_id} at {mapped.offset:#x}, page table entry"
                f" {mapped.entry:#x}: {type_}"
                for mapped, type_ in zip(outcome.mapped, types, strict=True)
            ],
            "written": [
                f"round {round_.written.round}: {round_.written.size} bytes, CRC-32"
                f" {round_.written.crc:08x}"
                for round_ in outcome.rounds
            ],
            "seen": f"CRC-32 {seen:08x} in the slot's memory at the end",
        },
    )


def moved(outcome: Outcome, picture: Path | None) -> Step:
    """Check step 4: engine and guest read the same bytes in both directions."""
    evidence: dict[str, Json] = {
        "read": [
            f"round {round_.dma.round}: CRC-32 {round_.dma.picture_crc:08x} by the engine,"
            f" {round_.dma.own_picture_crc:08x} by the guest"
            for round_ in outcome.rounds
        ],
        "copied": [
            f"round {round_.dma.round}: CRC-32 {round_.dma.copy_crc:08x} by the engine,"
            f" {round_.dma.own_copy_crc:08x} by the guest, {round_.dma.wrong_pixels} pixels wrong"
            " when the guest read it back"
            for round_ in outcome.rounds
        ],
        "chains": f"{outcome.chains[0]} of the control queue, {outcome.chains[1]} of the cursor's",
    }
    if picture is not None:
        evidence["picture"] = str(picture)
    ok = (
        bool(outcome.rounds)
        and all(round_.dma.holds for round_ in outcome.rounds)
        and _crc(outcome.copied) == outcome.rounds[-1].dma.copy_crc
    )
    return Step(4, "The device reads and writes memory, past the caches", ok, evidence)


def _type(pat: Pat, mapped: Mapped) -> str:
    """Return the memory type of a page table entry, by the PAT that the guest read back."""
    index = mapped.entry >> 3 & 3 | mapped.entry >> 5 & 4
    return _TYPES.get(pat.read_back >> 8 * index & 7, "reserved")


def _crc(picture: NDArray[np.uint8]) -> int:
    return zlib.crc32(picture.tobytes())


def _accepted(slot: Accepted) -> str:
    return (
        f"KVM_SET_USER_MEMORY_REGION slot={slot.slot} flags={slot.flags:#x}"
        f" ({SlotFlag(slot.flags).name}) guest_phys_addr={slot.guest_phys_addr:#x}"
        f" memory_size={slot.size:#x}: accepted"
    )


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"making {directory}", error) from error


def _save(outcome: Outcome, out: Path | None) -> Path | None:
    if out is None:
        return None
    path = out / PICTURE
    write_file(path, [png.encode(outcome.copied[..., 2::-1])])
    return path
