"""A VM's memory slots without KVM: what KVM takes is kept, and what it refuses is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from vgpud.errors import HostError

EVERY_FLAG: Final = 0xF


class Asked(NamedTuple):
    """What one KVM_SET_USER_MEMORY_REGION says, but for the address in this process."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int


Check: TypeAlias = Callable[[Asked], None]
"""Called before anything is done: raises what the VM is to raise, or returns."""


def accept(_: Asked) -> None:
    """Refuse nothing that KVM would not."""


def refusal(number: int, advice: str = "") -> HostError:
    """What the kernel's refusal with this errno becomes."""
    return HostError("KVM_SET_USER_MEMORY_REGION", OSError(number, ""), advice)


def refusing(number: int, when: Callable[[Asked], bool] = lambda _: True) -> Check:
    """A check that refuses slots that are set, never the deletion of one."""

    def check(asked: Asked) -> None:
        if asked.memory_size and when(asked):
            raise refusal(number, "as told")

    return check


class FakeVm:
    """The part of `vgpud.uapi.kvm.Vm` that slots need.

    `slots` are (flags, address, size) by number, `asked` is all that was asked, in order.
    """

    def __init__(
        self, check: Check = accept, *, flags: int = EVERY_FLAG, fixed_flags: int = 0
    ) -> None:
        """Say what is refused besides: flags that are not in `flags`, and a change of `fixed_flags`
        on a live slot."""
        self.check = check
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.asked: list[Asked] = []
        self._flags = flags
        self._fixed_flags = fixed_flags

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """Do what the ioctl of that name does; raises HostError."""
        self.asked.append(Asked(slot, flags, guest_phys_addr, memory_size))
        self.check(self.asked[-1])
        assert guest_phys_addr % 4096 == memory_size % 4096 == userspace_addr % 4096 == 0
        live = self.slots.get(slot)
        if (
            flags & ~self._flags
            or (live is None and memory_size == 0)
            or (live is not None and memory_size and (live[0] ^ flags) & self._fixed_flags)
        ):
            raise refusal(errno.EINVAL)
        if memory_size:
            self.slots[slot] = flags, guest_phys_addr, memory_size
        else:
            del self.slots[slot]

    @property
    def addresses(self) -> dict[int, int]:
        """The guest-physical addresses of the slots, by number."""
        return {slot: address for slot, (_, address, _) in self.slots.items()}
