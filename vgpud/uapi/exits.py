"""Why KVM_RUN returned: one type for each exit reason that a VMM can handle.

Source: Documentation/virt/kvm/api.rst of the kernel, section 5 "The kvm_run structure".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias


class Direction(IntEnum):
    """The direction of a port access: `KVM_EXIT_IO_*`."""

    IN = 0
    OUT = 1


@dataclass(frozen=True, slots=True)
class IoExit:
    """The guest accesses a port: `count` items of `size` bytes.

    `data` is what it writes; it is empty for a read, whose value goes to `Vcpu.answer`.
    """

    direction: Direction
    port: int
    size: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MmioExit:
    """The guest accesses `length` bytes at an address that is in no memory slot.

    `data` is what it writes; it is empty for a read, whose value goes to `Vcpu.answer`.
    """

    address: int
    length: int
    is_write: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest has halted; KVM reports that only without an in-kernel interrupt controller."""


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """A triple fault."""


@dataclass(frozen=True, slots=True)
class FailEntryExit:
    """The processor refused to enter the guest; `reason` is its own code."""

    reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """KVM gave up: `suberror` 1 is an instruction that it could not emulate."""

    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InterruptedExit:
    """A signal or `Vcpu.kick` ended the run; nothing is lost, and it can be run again."""


@dataclass(frozen=True, slots=True)
class UnknownExit:
    """Any other `KVM_EXIT_*`."""

    reason: int
    hardware_reason: int


Exit: TypeAlias = (
    IoExit
    | MmioExit
    | HltExit
    | ShutdownExit
    | FailEntryExit
    | InternalErrorExit
    | InterruptedExit
    | UnknownExit
)
