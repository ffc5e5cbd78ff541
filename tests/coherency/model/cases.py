"""The planner's table, and plans for slots that exist already, as cases for the model.

Many rows come to the same programs in the same worlds; those are one case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

from tests.coherency.model.scenario import Steps, World, device_steps, engine_steps, worlds
from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.plan import Plan
from vgpud.coherency.planner import PlanRow, plan, table
from vgpud.coherency.slot_policy import Fallback, MemoryType, Rule
from vgpud.errors import Unsupported
from vgpud.memory.backing import HostBacking
from vgpud.uapi.memslot import SlotFlag


@dataclass(frozen=True, eq=False)
class Case:
    """Some rows of the table, in all worlds that are possible for them."""

    worlds: tuple[World, ...]
    steps: Steps
    rows: list[PlanRow] = field(default_factory=list)

    def __str__(self) -> str:
        facts = self.rows[0].facts
        parts = [facts.backing.value, facts.kvm.value, f"mtrr-{facts.mtrr}"]
        parts.append(self.rows[0].rule.memory_type.value)
        if self.worlds[0].snoops:
            parts.append("snoops")
        return " ".join(parts)


def rows() -> Iterator[PlanRow]:
    """Every row of the table, and those of a window's slot that other rules decided about."""
    yield from table()
    for backing, mtrr, snoops in product(HostBacking, GuestMtrr, (False, True)):
        facts = Facts(KvmMode.FLAG, backing, mtrr, snoops)
        for memory_type, fallback in product(MemoryType, Fallback):
            rule = Rule(memory_type=memory_type, fallback=fallback)
            for slot_flags in (SlotFlag.NONE, SlotFlag.NON_COHERENT_DMA):
                try:
                    found = plan(facts, rule, slot_flags=slot_flags)
                except Unsupported as error:
                    yield PlanRow(facts, rule, None, str(error))
                else:
                    yield PlanRow(facts, rule, found, found.reason)


def cases(make: Callable[[Plan], Steps]) -> list[Case]:
    """The cases for a device (`device_steps`) or the engine (`engine_steps`)."""
    found: dict[tuple[frozenset[World], Steps], Case] = {}
    for row in rows():
        if row.plan is not None:
            possible, steps = worlds(row.facts, row.plan), make(row.plan)
            case = found.setdefault((possible, steps), Case(tuple(sorted(possible)), steps))
            case.rows.append(row)
    return list(found.values())


DEVICE_CASES = cases(device_steps)
ENGINE_CASES = cases(engine_steps)
