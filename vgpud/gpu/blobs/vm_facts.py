"""What the planner knows of the guest's VM, found out when a guest that runs needs to know."""

from __future__ import annotations

from collections.abc import Callable

from vgpud.coherency.facts import Facts, facts_of
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import window_slot_flags
from vgpud.coherency.slot_policy import DEFAULT_RULE, GuestPat, Layout, Rule
from vgpud.memory.backing import HostBacking
from vgpud.uapi.memslot import SlotFlag


class VmFacts:
    """`look` sees what decides the guest's memory types. It is asked once for each driver: QEMU
    connects before it opens KVM, so that nothing is to be seen at that time."""

    def __init__(
        self,
        guest_pat: GuestPat,
        rules: tuple[Rule, ...],
        layout: Layout,
        look: Callable[[], KvmMode],
    ) -> None:
        self.rules = rules
        """The slot policy in force."""
        self._guest_pat = guest_pat
        self._layout = layout
        self._find_kvm_mode = look
        self._seen: KvmMode | None = None
        self._facts: dict[HostBacking, Facts] = {}
        self._window_flags: SlotFlag | None = None

    def facts(self, backing: HostBacking) -> Facts:
        """Return the facts for a blob in this kind of memory."""
        found = self._facts.get(backing)
        if found is None:
            if self._seen is None:
                self._seen = self._find_kvm_mode()
            found = facts_of(self._guest_pat, seen=self._seen, backing=backing)
            self._facts[backing] = found
        return found

    @property
    def slot_flags(self) -> SlotFlag | None:
        """The flags of the slot that a blob goes into, where one slot holds all of them."""
        return self.window_flags() if self._layout is Layout.WINDOW else None

    def window_flags(self) -> SlotFlag:
        """Return the flags of the window's slot. Once said they stay: plans have been made by them,
        and a live slot's can't be changed."""
        if self._window_flags is None:
            facts = self.facts(HostBacking.RAM_WB)  # the window is a memory file
            self._window_flags = window_slot_flags(facts, self.rules or (DEFAULT_RULE,))
        return self._window_flags

    def reconfigure(self, guest_pat: GuestPat, rules: tuple[Rule, ...]) -> None:
        """Take other rules and another `guest_pat` for the plans that are yet to be made."""
        self._guest_pat, self.rules = guest_pat, rules
        if not self._window_flags:  # in a flagged slot, the guest's PAT counts whatever is said
            self._facts.clear()

    def find_kvm_mode_again(self, *, window_mapped: bool) -> None:
        """Find the KVM mode again if it is still unknown.

        Plans for an unknown mode are correct with every mode, so the window may even get other
        flags, if it has no slot yet.
        """
        if self._seen is not KvmMode.UNKNOWN:
            return
        self._seen = None
        self._facts.clear()
        if not window_mapped:
            self._window_flags = None

    def forget(self) -> None:
        """Forget what was seen; it is looked for again when another driver needs it."""
        self._seen = self._window_flags = None
        self._facts.clear()
