"""Whatever a guest sends: nothing but `VgpudError`, nothing leaks, the limit holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random

import pytest

from tests.gpu import driver as d
from tests.gpu import nonsense
from tests.gpu.machine import (
    HIGH,
    KIB,
    LOW,
    MIB,
    NEXT,
    PAGE,
    REGION,
    Machine,
    Screen,
    run_submission,
    screenshot,
)
from tests.gpu.wire.command_cases import COMMANDS
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import VgpudError
from vgpud.gpu.contexts import Submission
from vgpud.gpu.resources import HostBlob, Image
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.command_codec import Command

LIMIT = 2 * MIB
LENGTH = 150
SEEDS = range(12)


class Harness:
    """A machine, and the work that it has not done yet."""

    def __init__(self, machine: Machine, random: Random) -> None:
        self.machine = machine
        self.random = random
        self.held: list[Callable[[], None]] = []
        self.done: Counter[type[Command]] = Counter()
        machine.all(d.ctx_create(1), d.create_2d(1, 64, 64), d.attach_backing(1, (LOW, REGION)))
        machine.all(d.create_blob(2, 2 * PAGE), d.ctx_attach(2))
        machine.all(d.guest_blob(3, (HIGH, PAGE), (NEXT - 7, PAGE)), d.ctx_attach(3))

    def step(self) -> None:
        """Executes a random command; what it raises is a `VgpudError`, and has cost nothing."""
        command = nonsense.command(self.random)
        used, waiting = self.machine.used, len(self.held)
        try:
            response = self._settle(command)
        except VgpudError:
            # MAP_BLOB may displace others before it fails.
            if waiting == len(self.held) and not isinstance(command, commands.ResourceMapBlob):
                assert self.machine.used == used, command
        else:
            self.done[type(command)] += 1
            if response is not None:
                responses.encode(response, command.header)

    def finish_one(self) -> None:
        with suppress(VgpudError):
            self.held.pop(0)()

    def check_memory(self) -> None:
        """What is taken is within the limit, and no less than what is really there."""
        machine = self.machine
        held = machine.empty
        for resource in machine.gpu.resources:
            if isinstance(resource, Image):
                held += resource.size
            elif isinstance(resource, HostBlob):
                place = machine.gpu.layout.map.placement(resource.id)
                inside = place is not None and machine.spec.layout is Layout.WINDOW
                held += 0 if inside else resource.size
        assert held <= machine.used <= LIMIT

    def _settle(self, command: Command) -> responses.Response | None:
        """Executes a command to its end; None for work that is left waiting."""
        outcome: object = self.machine.gpu.execute(command)
        while isinstance(outcome, Coroutine):
            try:
                outcome.send(None)
            except StopIteration as end:
                outcome = end.value
            else:
                self.finish_one()
        if isinstance(outcome, Submission):
            if self.random.random() < 0.5:
                self.held.append(self.machine.executor.hold(outcome))
                return None
            return run_submission(outcome)
        return outcome  # type: ignore[return-value]


def test_every_command_is_made() -> None:
    assert set(nonsense.FIELDS) == {type(sample) for sample, _, _ in COMMANDS}


@pytest.mark.parametrize("layout", Layout)
def test_no_sequence_of_commands_does_harm(layout: Layout) -> None:
    done: Counter[type[Command]] = Counter()
    for seed in SEEDS:
        random = Random(seed)
        with Machine(layout, window=128 * KIB, limit=LIMIT, outputs=[(64, 64)] * 2) as machine:
            harness = Harness(machine, random)
            for _ in range(LENGTH):
                if random.random() < 0.02:
                    machine.gpu.attach_display(random.choice([Screen(), None]))
                harness.step()
                harness.check_memory()
                screenshot(machine.gpu, random.randint(0, 2))
            while harness.held:
                harness.finish_one()
            for resource in [resource.id for resource in machine.gpu.resources]:
                machine.do(d.unref(resource))
            for ctx in (1, 2):
                with suppress(VgpudError):
                    machine.do(d.ctx_destroy(ctx))
            assert machine.used == machine.empty, f"seed {seed}"
            done += harness.done
    assert set(done) == set(nonsense.FIELDS)  # each of them has come to something


@pytest.mark.parametrize("layout", Layout)
def test_a_reset_gives_everything_back(layout: Layout) -> None:
    with Machine(layout, window=128 * KIB, limit=LIMIT) as machine:
        for seed in SEEDS:
            harness = Harness(machine, Random(1000 + seed))
            for _ in range(LENGTH // 3):
                harness.step()
            while harness.held:
                harness.finish_one()
            machine.reset()
            assert machine.used == machine.empty, f"seed {seed}"
            assert len(machine.gpu.resources) == 0
