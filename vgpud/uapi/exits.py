"""What a vCPU comes back with: one type for each reason that a VMM can do something about.

Source: Documentation/virt/kvm/api.rst of the kernel, section 5 "The kvm_run structure".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias


class Direction(IntEnum):
    """Which way a port access goes: `KVM_EXIT_IO_*`."""

    IN = 0
    OUT = 1


@dataclass(frozen=True, slots=True)
class IoExit:
    """The guest accesses a port: `count` items of `size` bytes.

    `data` is what it writes; empty where it reads, which `Vcpu.answer` must be given.
    """

    direction: Direction
    port: int
    size: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MmioExit:
    """The guest accesses `length` bytes where no slot has memory.

    `data` is what it writes; empty where it reads, which `Vcpu.answer` must be given.
    """

    address: int
    length: int
    is_write: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest has halted; without an interrupt controller in the kernel, that is left to us."""


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
    """A signal, or `Vcpu.kick`, ended the run; nothing is lost, run it again."""


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
