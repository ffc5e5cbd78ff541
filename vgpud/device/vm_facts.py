"""What the planner knows of the guest's VM, found out when a guest that runs needs to know."""

from __future__ import annotations

from collections.abc import Callable

from vgpud.device.spec import DeviceSpec
from vgpud.policy.coherency import Facts, KvmMode, facts_of, window_slot_flags
from vgpud.policy.slot_entries import SlotFlag
from vgpud.policy.slot_policy import DEFAULT_RULE, Layout


class VmFacts:
    """`look` sees what decides the guest's memory types. It is asked once for each driver: QEMU
    connects before it opens KVM, so that nothing is to be seen at that time."""

    def __init__(self, spec: DeviceSpec, look: Callable[[], KvmMode]) -> None:
        self._spec = spec
        self._look = look
        self._facts: Facts | None = None

    @property
    def facts(self) -> Facts:
        """The facts for blobs in memory files, which this process has mapped write-back."""
        if self._facts is None:
            self._facts = facts_of(self._spec.guest_pat, seen=self._look())
        return self._facts

    @property
    def slot_flags(self) -> SlotFlag | None:
        """The flags of the slot that a blob goes into, where one slot holds all of them."""
        return self.window_flags() if self._spec.layout is Layout.WINDOW else None

    def window_flags(self) -> SlotFlag:
        """The flags of the window's slot."""
        return window_slot_flags(self.facts, self._spec.rules or (DEFAULT_RULE,))

    def forget(self) -> None:
        """Looks anew at the next occasion."""
        self._facts = None
