"""What the planner knows of the guest's VM, found out when a guest that runs needs to know."""

from __future__ import annotations

from collections.abc import Callable

from vgpud.coherency.facts import Facts, HostBacking, facts_of
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import window_slot_flags
from vgpud.coherency.slot_policy import DEFAULT_RULE, Layout, Rule
from vgpud.gpu.spec import DeviceSpec
from vgpud.uapi.memslot import SlotFlag


class VmFacts:
    """`look` sees what decides the guest's memory types. It is asked once for each driver: QEMU
    connects before it opens KVM, so that nothing is to be seen at that time."""

    def __init__(
        self,
        spec: DeviceSpec,
        look: Callable[[], KvmMode],
        backing: HostBacking = HostBacking.RAM_WB,
    ) -> None:
        self._spec = spec
        self._look = look
        self._backing = backing
        self._seen: KvmMode | None = None
        self._facts: Facts | None = None
        self._window_flags: SlotFlag | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The slot policy in force."""
        return self._spec.rules

    @property
    def facts(self) -> Facts:
        """The facts for the device's blobs, which are all in memory of one kind."""
        if self._facts is None:
            if self._seen is None:
                self._seen = self._look()
            self._facts = facts_of(self._spec.guest_pat, seen=self._seen, backing=self._backing)
        return self._facts

    @property
    def slot_flags(self) -> SlotFlag | None:
        """The flags of the slot that a blob goes into, where one slot holds all of them."""
        return self.window_flags() if self._spec.layout is Layout.WINDOW else None

    def window_flags(self) -> SlotFlag:
        """The flags of the window's slot. Once said they stay: plans have been made by them, and a
        live slot's can't be changed."""
        if self._window_flags is None:
            self._window_flags = window_slot_flags(self.facts, self._spec.rules or (DEFAULT_RULE,))
        return self._window_flags

    def reconfigure(self, spec: DeviceSpec) -> None:
        """Takes other rules and another `guest_pat` for the plans that are yet to be made."""
        self._spec = spec
        if not self._window_flags:  # in a flagged slot, the guest's PAT counts whatever is said
            self._facts = None

    def look_again(self, *, window_mapped: bool) -> None:
        """Looks anew if nothing was seen before; as plans for the unknown hold whatever turns out
        to be, the window may even get other flags, if it has no slot yet."""
        if self._seen is not KvmMode.UNKNOWN:
            return
        self._seen = self._facts = None
        if not window_mapped:
            self._window_flags = None

    def forget(self) -> None:
        """Looks anew at the next occasion."""
        self._seen = self._facts = self._window_flags = None
