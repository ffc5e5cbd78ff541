"""The facts about the guest's VM that the planner needs, found out when the first blob needs
them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vgpud.coherency.facts import Facts, facts_of
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import window_slot_flags
from vgpud.coherency.slot_policy import DEFAULT_RULE, GuestPat, Layout, Rule
from vgpud.memory.backing import HostBacking
from vgpud.uapi.memslot import SlotFlag


class VmFacts:
    """The facts about one VM.

    `find_kvm_mode` finds out what decides the guest's memory types. It is called once for each
    driver, and not earlier, because QEMU connects before it opens KVM.
    """

    def __init__(
        self,
        guest_pat: GuestPat,
        rules: tuple[Rule, ...],
        layout: Layout,
        find_kvm_mode: Callable[[], KvmMode],
        examine: Callable[[], Awaitable[None]],
    ) -> None:
        self.rules = rules
        """The slot policy in force."""
        self._guest_pat = guest_pat
        self._layout = layout
        self._find_kvm_mode = find_kvm_mode
        self._examine = examine
        self._kvm_mode: KvmMode | None = None
        self._facts: dict[HostBacking, Facts] = {}
        self._window_flags: SlotFlag | None = None

    async def prepare(self) -> None:
        """Prepare what `find_kvm_mode` needs, so that the first blob finds the mode known."""
        if self._kvm_mode is None:
            await self._examine()

    def facts(self, backing: HostBacking) -> Facts:
        """Return the facts for a blob in this kind of memory."""
        found = self._facts.get(backing)
        if found is None:
            if self._kvm_mode is None:
                self._kvm_mode = self._find_kvm_mode()
            found = facts_of(self._guest_pat, seen=self._kvm_mode, backing=backing)
            self._facts[backing] = found
        return found

    @property
    def slot_flags(self) -> SlotFlag | None:
        """The flags of the slot that holds all blobs; None if each has a slot of its own."""
        return self.window_flags() if self._layout is Layout.WINDOW else None

    def window_flags(self) -> SlotFlag:
        """Return the flags of the window's slot.

        They never change for one driver: plans depend on them, and a slot's flags can't be changed
        while it exists.
        """
        if self._window_flags is None:
            facts = self.facts(HostBacking.RAM_WB)  # the window is a memory file
            self._window_flags = window_slot_flags(facts, self.rules or (DEFAULT_RULE,))
        return self._window_flags

    def reconfigure(self, guest_pat: GuestPat, rules: tuple[Rule, ...]) -> None:
        """Use other rules and another `guest_pat` for the next plans."""
        self._guest_pat, self.rules = guest_pat, rules
        if (
            not self._window_flags
        ):  # in a slot with the flag, KVM honours the guest's PAT in any case
            self._facts.clear()

    def find_kvm_mode_again(self, *, window_mapped: bool) -> None:
        """Find the KVM mode again if it is still unknown.

        Plans for an unknown mode are correct with every mode, so the window may even get other
        flags, if it has no slot yet.
        """
        if self._kvm_mode is not KvmMode.UNKNOWN:
            return
        self._kvm_mode = self._find_kvm_mode()
        self._facts.clear()
        if not window_mapped:
            self._window_flags = None

    def forget(self) -> None:
        """Clear the facts; they are found out again for the next driver."""
        self._kvm_mode = self._window_flags = None
        self._facts.clear()
