"""A guest, a host and a device that share a blob by a plan, on `tests.coherency.model.machine`.

Each word has one owner at a time, who may read and write it; ownership passes at sync points, where
the parties do what the plan says and nothing more. Guest and host may own words of one line at the
same time; the device owns whole lines. A read that does not find the latest value is a violation;
so is a lost write, which is seen at the next read. `deeds` and `accidents` list what is possible
between any two steps, `apply` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, TypeAlias

from tests.coherency.model.machine import WORDS, Agent, Machine
from tests.coherency.model.memory_types import (
    MAY_BE_NESTED,
    Access,
    Hypervisor,
    Type,
    guest_accesses,
    host_accesses,
    hypervisors,
)
from vgpud.coherency.facts import Facts
from vgpud.coherency.plan import Duty, HostRead, HostWrite, Plan
from vgpud.memory.backing import HostBacking

OLD = -1
"""What memory holds before it is ours."""

ZERO = 0
"""What a new blob reads as."""

Action: TypeAlias = tuple[str | int, ...]


class ViolationError(AssertionError):
    """Somebody read what he should not have."""


class Owner(IntEnum):
    """Who may touch a word; TRANSIT is nobody, while the host does its duty."""

    GUEST = 0
    HOST = 1
    DEVICE = 2
    TRANSIT = 3


@dataclass(frozen=True, order=True)
class World:
    """What the processor does for us, whatever we know of it.

    `speculates`: somebody has the memory mapped write-back, if only the kernel, so lines may be
    fetched at any time. `zeroed`: the kernel zeroes fresh pages through its cache; else they are
    zeros in memory. `movable`: the kernel may move pages that are not pinned. `snoops`: the
    device's accesses are snooped.
    """

    guest: Access
    host: Access
    speculates: bool
    zeroed: bool
    movable: bool
    snoops: bool

    def __str__(self) -> str:
        return f"guest {self.guest}, host {self.host}{', RAM' if self.zeroed else ', MMIO'}"


@dataclass(frozen=True)
class Steps:
    """A plan as programs for the host: `flush`, `fence`, and one `load`, `store` or `stream`.

    `engine`: the device is a program on the host's CPU, which reads and writes by `read` and
    `write`.
    """

    hand_over: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    to_device: tuple[str, ...]
    from_device: tuple[str, ...]
    pinned: bool
    engine: bool = False
    whole_lines: bool = False

    def without_one(self, world: World) -> Iterator[tuple[str, Steps]]:
        """Every way to leave out one step, with a name for it."""
        for name in ("hand_over", "read", "write", "to_device", "from_device"):
            program: tuple[str, ...] = getattr(self, name)
            for at, step in enumerate(program):
                instead: dict[str, Any] = {}
                if step in ("flush", "fence"):
                    instead[name] = program[:at] + program[at + 1 :]
                elif step == "stream" and world.host.cached and not self.whole_lines:
                    # Flushed before and after, a line of one owner may as well be stored to.
                    instead[name] = (*program[:at], "store", *program[at + 1 :])
                if instead:
                    yield f"{name}[{at}] {step}", replace(self, **instead)
        if self.pinned:
            yield "pinned", replace(self, pinned=False)


_DUTY = {Duty.NOTHING: (), Duty.FLUSH: ("flush",)}
_READ = {HostRead.PLAIN: ("load",), HostRead.FLUSHED: ("flush", "load")}
_WRITE = {
    HostWrite.PLAIN: ("store",),
    HostWrite.NON_TEMPORAL: ("stream", "fence"),
    HostWrite.FLUSHED: ("flush", "stream", "flush"),
}


def device_steps(plan: Plan) -> Steps:
    """The plan with a device that does DMA."""
    return Steps(
        hand_over=_DUTY[plan.before_hand_over],
        read=_READ[plan.host_read],
        write=_WRITE[plan.host_write],
        to_device=_DUTY[plan.sync.to_device],
        from_device=_DUTY[plan.sync.from_device],
        pinned=plan.pinned,
        whole_lines=plan.host_write is HostWrite.FLUSHED,
    )


def engine_steps(plan: Plan) -> Steps:
    """The plan with the engine: it does nothing at sync points, but all by its three properties."""
    write: tuple[str, ...] = ("store",)
    if plan.flush_around_write:
        write = ("flush", "stream", "flush")
    elif plan.non_temporal_write:
        write = ("stream", "fence")
    return Steps(
        hand_over=_DUTY[plan.before_hand_over],
        read=("flush", "load") if plan.flush_before_read else ("load",),
        write=write,
        to_device=(),
        from_device=(),
        pinned=plan.pinned,
        engine=True,
        whole_lines=plan.flush_around_write,
    )


def worlds(
    facts: Facts, plan: Plan, among: Iterable[Hypervisor] = tuple(Hypervisor)
) -> frozenset[World]:
    """All worlds that are possible as far as the facts tell, with one of these hypervisors."""
    ram = facts.backing is not HostBacking.MMIO
    movable = facts.backing is HostBacking.RAM_WB
    # One that snoops does so whatever the plan says.
    snoops = ram and (facts.device_snoops or plan.device_snoops)
    return frozenset(
        World(guest, host, ram, ram, movable, snoops)
        for self_snoop in (False, True)
        for hypervisor in hypervisors(facts.kvm, plan.slot_flags).intersection(among)
        for guest in guest_accesses(hypervisor, facts, plan, self_snoop=self_snoop)
        for host in host_accesses(
            facts.backing, self_snoop=self_snoop, may_be_nested=facts.kvm in MAY_BE_NESTED
        )
    )


class Scenario:
    """A blob of `lines` lines, from the moment that the kernel gave us its pages."""

    __slots__ = (
        "latest", "lines", "machine", "owner", "steps", "todo", "version", "world",
    )  # fmt: skip

    def __init__(self, world: World, steps: Steps, *, lines: int, one_cache: bool = False) -> None:
        self.world = world
        self.steps = steps
        self.lines = lines
        self.machine = Machine(lines, OLD if world.zeroed else ZERO, one_cache=one_cache)
        self.latest = [ZERO] * (lines * WORDS)
        self.version = ZERO
        self.owner = [Owner.TRANSIT] * (lines * WORDS)
        # What the host still has to do, as (step, word or line, new owner).
        self.todo: tuple[tuple[str, int, int], ...] = ()
        for line in range(lines):
            if world.zeroed:
                for word in self._words(line):
                    self.machine.store(Agent.HOST, word, ZERO, Access(Type.WB))
            self._pass(line, steps.hand_over, Owner.GUEST)

    def clone(self) -> Scenario:
        other = Scenario.__new__(Scenario)
        other.world, other.steps, other.lines = self.world, self.steps, self.lines
        other.machine = self.machine.clone()
        other.latest, other.owner = self.latest.copy(), self.owner.copy()
        other.todo, other.version = self.todo, self.version
        return other

    def key(self) -> tuple[object, ...]:
        """The state, as far as it matters: of a value only whether it is the latest."""
        machine, latest = self.machine, self.latest
        return (
            tuple(value == now for value, now in zip(machine.memory, latest, strict=True)),
            tuple(
                (number, line, held.dirty, *self._fresh(line, held.words))
                for number, cache in enumerate(machine.caches)
                for line, held in sorted(cache.items())
            ),
            tuple(
                (agent, word, value == latest[word], checks)
                for agent, buffer in enumerate(machine.buffers)
                for word, (value, checks) in sorted(buffer.items())
            ),
            tuple(self.owner),
            self.todo,
        )

    def apply(self, action: Action) -> None:
        """Do one action. Raises `ViolationError`."""
        machine, steps = self.machine, self.steps
        match action:
            case "guest load", int(word):
                self._check(word, machine.load(Agent.GUEST, word, self.world.guest), action)
            case "guest store", int(word):
                machine.store(Agent.GUEST, word, self._next(word), self.world.guest)
            case (("host load" | "engine load"), int(word)):
                self.todo = tuple((step, word, 0) for step in steps.read)
            case (("host store" | "engine store"), int(word)):
                self.todo = tuple((step, word, 0) for step in steps.write)
            case "host step", *_:
                self._step()
            case "device load", int(word):
                self._check(word, machine.dma_load(word, snoops=self.world.snoops), action)
            case "device store", int(word), int(allocates):
                machine.dma_store(
                    word, self._next(word), snoops=self.world.snoops, allocates=bool(allocates)
                )
            case "to guest", int(word):
                for each in self._together(word):
                    self.owner[each] = Owner.GUEST
            case "to host", int(word):
                machine.fence(Agent.GUEST)  # its own, before whatever told us
                for each in self._together(word):
                    self.owner[each] = Owner.HOST
            case "to device", int(line):
                machine.fence(Agent.GUEST)
                self._pass(line, steps.to_device, Owner.DEVICE)
            case "from device", int(line), int(owner):
                self._pass(line, steps.from_device, Owner(owner))
            case "fill", int(agent), int(line):
                machine.fill(Agent(agent), line)
            case "evict", int(cache), int(line):
                machine.evict(cache, line)
            case "drain", int(agent), int(word):
                machine.drain(Agent(agent), word)
            case "move", int(line):
                machine.move(line, OLD)
            case _:
                raise AssertionError(action)

    def route(self, word: int, to: Owner) -> Action | None:
        """The next action on the way of a word to an owner; None if it is there."""
        owner, line = self.owner[word], word // WORDS
        if owner is to:
            return None
        if owner is Owner.DEVICE:
            return ("from device", line, to)
        if to is not Owner.DEVICE:
            return ("to guest" if to is Owner.GUEST else "to host", word)
        for other in self._words(line):
            if self.owner[other] is not owner:
                return self.route(other, owner)
        return ("to device", line)

    def deeds(self) -> list[Action]:
        """What the parties may do next."""
        found: list[Action] = [("host step", *self.todo[0])] if self.todo else []
        idle = not self.todo  # the host does one thing at a time
        device = "engine" if self.steps.engine else "device"
        busy = {each for _, word, _ in self.todo for each in self._together(word)}
        for word, owner in enumerate(self.owner):
            if owner is Owner.GUEST:
                found += [("guest load", word), ("guest store", word)]
                if idle:
                    found.append(("to host", word))
            elif owner is Owner.HOST and idle:
                found += [("host load", word), ("host store", word), ("to guest", word)]
            elif owner is Owner.DEVICE and word not in busy and (idle or not self.steps.engine):
                found.append((f"{device} load", word))
                if self.steps.engine:
                    found.append(("engine store", word))
                else:
                    found += [("device store", word, how) for how in range(1 + self.world.snoops)]
        if idle:
            for line in range(self.lines):
                owners = {self.owner[word] for word in self._words(line)}
                if owners in ({Owner.GUEST}, {Owner.HOST}):
                    found.append(("to device", line))
                elif owners == {Owner.DEVICE}:
                    found += [("from device", line, Owner.GUEST), ("from device", line, Owner.HOST)]
        return found

    def accidents(self) -> list[Action]:
        """What may happen by itself."""
        machine, world = self.machine, self.world
        found: list[Action] = []
        for number, cache in enumerate(machine.caches):
            found += [("evict", number, line) for line in cache]
        for agent, buffer in enumerate(machine.buffers):
            found += [("drain", agent, word) for word in buffer]
        for line in range(self.lines):
            if world.speculates and Owner.TRANSIT not in self._owners(line):
                for agent in range(min(2, len(machine.caches))):
                    if line not in machine.caches[agent]:
                        found.append(("fill", agent, line))
            if world.movable and not self.steps.pinned and not self._mapped_for_dma(line):
                found.append(("move", line))
        return found

    def _step(self) -> None:
        (step, at, owner), self.todo = self.todo[0], self.todo[1:]
        machine, host = self.machine, self.world.host
        match step:
            case "flush":
                machine.flush(Agent.HOST, at // WORDS)
            case "fence":
                machine.fence(Agent.HOST)
            case "load":
                self._check(at, machine.load(Agent.HOST, at, host), ("host load", at))
            case "store":
                machine.store(Agent.HOST, at, self._next(at), host)
            case "stream":
                machine.stream(Agent.HOST, at, self._next(at), host)
            case "own":
                for word in self._words(at // WORDS):
                    self.owner[word] = Owner(owner)
            case _:
                raise AssertionError(step)

    def _pass(self, line: int, duty: tuple[str, ...], to: Owner) -> None:
        """Have the host do its duty on a line and then let it go to its new owner."""
        for word in self._words(line):
            self.owner[word] = Owner.TRANSIT
        first = line * WORDS
        self.todo += (*((step, first, 0) for step in duty), ("own", first, to))

    def _check(self, word: int, value: int, action: Action) -> None:
        if value != self.latest[word]:
            raise ViolationError(f"{action}: {value}, not {self.latest[word]}; {self.world}")

    def _next(self, word: int) -> int:
        self.version += 1
        self.latest[word] = self.version
        return self.version

    def _words(self, line: int) -> range:
        return range(line * WORDS, (line + 1) * WORDS)

    def _together(self, word: int) -> range:
        """The words that pass between guest and host with this one."""
        return self._words(word // WORDS) if self.steps.whole_lines else range(word, word + 1)

    def _owners(self, line: int) -> set[Owner]:
        return {self.owner[word] for word in self._words(line)}

    def _mapped_for_dma(self, line: int) -> bool:
        """Drivers pin what their device works on."""
        passing = Owner.DEVICE in self._owners(line) or Owner.TRANSIT in self._owners(line)
        return passing and not self.steps.engine

    def _fresh(self, line: int, words: tuple[int, ...]) -> list[bool]:
        first = line * WORDS
        return [value == self.latest[first + at] for at, value in enumerate(words)]
