"""The plan of each blob by the device's rules, and reports of plans that are not what a rule wants.

The decision is `coherency.planner`. There is a line in the log and an event for each rule and
reason in a session, not for each blob, because guests make thousands.
"""

from __future__ import annotations

import logging

from vgpud.coherency.plan import Plan
from vgpud.coherency.planner import plan
from vgpud.coherency.slot_policy import BlobKind, Rule, first_match
from vgpud.errors import Unsupported
from vgpud.gpu.blobs.vm_facts import VmFacts
from vgpud.gpu.memory_types import MAP_INFO
from vgpud.memory.backing import HostBacking
from vgpud.publish import Publish

log = logging.getLogger(__name__)


class Plans:
    """The plans of one device's blobs."""

    def __init__(self, device: str, vm: VmFacts, publish: Publish) -> None:
        self._device = device
        self._vm = vm
        self._publish = publish
        self._announced: set[tuple[Rule, BlobKind, str]] = set()
        self._problems: dict[tuple[Rule, BlobKind], str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What a rule wants and blobs of the present driver did not get, as sentences."""
        return tuple(self._problems.values())

    def rule(self, kind: BlobKind, size: int) -> Rule:
        """Return the rule for a blob of `size` bytes."""
        return first_match(self._vm.rules, self._device, kind, size)

    async def prepare(self) -> None:
        """Find out about the VM in a thread, before a driver's first plan; takes no longer than
        half a second."""
        await self._vm.prepare()

    def make(self, kind: BlobKind, size: int, backing: HostBacking) -> Plan:
        """Return the plan for a blob in this kind of memory.

        Raises `Unsupported` where the rule says to refuse it.
        """
        rule = self.rule(kind, size)
        try:
            result = plan(self._vm.facts(backing), rule, slot_flags=self._vm.slot_flags)
        except Unsupported as error:
            self._report_refused(rule, kind, str(error))
            raise
        self._report_made(rule, kind, result)
        return result

    def forget(self) -> None:
        """Clear the problems; the next driver may have none."""
        self._problems.clear()

    def _report_made(self, rule: Rule, kind: BlobKind, result: Plan) -> None:
        planned, wanted, reason = result.memory_type, rule.memory_type, result.reason
        problem = ""
        if planned is wanted:
            self._problems.pop((rule, kind), None)
        else:
            problem = f"{kind} blobs are {planned} instead of {wanted}: {reason}"
            self._problems[rule, kind] = problem
        if not self._is_new(rule, kind, reason):
            return
        name = MAP_INFO[result.memory_type].name
        log.info("plan device=%s blob=%s map_info=%s: %s", self._device, kind, name, reason)
        if problem:
            self._publish(
                "plan.fallback",
                problem,
                blob=str(kind),
                wanted=str(wanted),
                told=str(planned),
                reason=reason,
            )

    def _report_refused(self, rule: Rule, kind: BlobKind, reason: str) -> None:
        problem = f"{kind} blobs are refused: {reason}"
        self._problems[rule, kind] = problem
        if not self._is_new(rule, kind, reason):
            return
        wanted = rule.memory_type
        log.warning(
            "plan refused device=%s blob=%s wanted=%s: %s", self._device, kind, wanted, reason
        )
        self._publish(
            "plan.refused", problem, blob=str(kind), wanted=str(wanted), told=None, reason=reason
        )

    def _is_new(self, rule: Rule, kind: BlobKind, reason: str) -> bool:
        new = (rule, kind, reason) not in self._announced
        self._announced.add((rule, kind, reason))
        return new
