"""Random interleavings: the same model as in test_plans, with more of it at once.

Two lines and a cache for each agent, real values, long runs. What the search over all states proves
of one line is sampled here of several; and a plan that is wrong is noticed within as many examples
as hypothesis tries by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.coherency.model.cases import DEVICE_CASES, ENGINE_CASES, Case
from tests.coherency.model.machine import WORDS
from tests.coherency.model.scenario import (
    Owner,
    Scenario,
    Steps,
    ViolationError,
    World,
    device_steps,
    worlds,
)
from tests.coherency.model.test_plans import NAIVE, violation
from vgpud.coherency.facts import Facts
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.memory.backing import HostBacking

LINES = 2
TURNS = 30
DEFAULT_EXAMPLES = settings.get_profile("default").max_examples


@dataclass(frozen=True)
class Turn:
    """A party gets a word, then reads or writes it; a snooped write of a device may allocate."""

    party: Owner
    word: int
    stores: bool
    allocates: bool


@dataclass(frozen=True)
class Game:
    """Turns, and what else happens in between, a byte each time that something may."""

    turns: list[Turn]
    noise: bytes


GAMES = st.builds(
    Game,
    st.lists(
        st.builds(
            Turn,
            st.sampled_from((Owner.GUEST, Owner.HOST, Owner.DEVICE)),
            st.integers(0, LINES * WORDS - 1),
            st.booleans(),
            st.booleans(),
        ),
        min_size=TURNS,
        max_size=TURNS,
    ),
    st.binary(min_size=4 * TURNS, max_size=8 * TURNS),
)


def play(world: World, steps: Steps, game: Game) -> None:
    """Play a game. Raises `ViolationError`."""
    scenario = Scenario(world, steps, lines=LINES)
    noise = iter(game.noise)
    _finish(scenario, noise)
    for turn in game.turns:
        while (action := scenario.route(turn.word, turn.party)) is not None:
            scenario.apply(action)
            _finish(scenario, noise)
        match turn.party:
            case Owner.DEVICE if not steps.engine and turn.stores:
                scenario.apply(("device store", turn.word, turn.allocates and world.snoops))
            case Owner.DEVICE if steps.engine:
                scenario.apply(("engine store" if turn.stores else "engine load", turn.word))
            case party:
                what = "store" if turn.stores else "load"
                scenario.apply((f"{party.name.lower()} {what}", turn.word))
        _finish(scenario, noise)


def _finish(scenario: Scenario, noise: Iterator[int]) -> None:
    """Let the host do what it has to, while things happen: sometimes an accident, sometimes the
    guest does something with what it owns."""
    while True:
        number = next(noise, 0)
        if number >= 128:
            deeds = [deed for deed in scenario.deeds() if str(deed[0]).startswith("guest")]
            possible = deeds if number >= 224 else scenario.accidents()
            if possible:
                scenario.apply(possible[number % len(possible)])
        if not scenario.todo:
            return
        scenario.apply(("host step",))


@pytest.mark.parametrize("case", [*DEVICE_CASES, *ENGINE_CASES], ids=str)
def test_nobody_reads_what_is_stale(case: Case) -> None:
    # A sample: test_plans has gone through every state of one line already.
    @settings(max_examples=12, deadline=None)
    @given(st.sampled_from(case.worlds), GAMES)
    def plays(world: World, game: Game) -> None:
        play(world, case.steps, game)

    plays()


def notices(world: World, steps: Steps) -> bool:
    """Whether as many examples as hypothesis tries by default find a violation.

    Always the same ones, so that this is no matter of luck.
    """

    @settings(
        max_examples=DEFAULT_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(GAMES)
    def plays(game: Game) -> None:
        play(world, steps, game)

    try:
        plays()
    except ViolationError:
        return True
    return False


@pytest.mark.parametrize("backing", [HostBacking.RAM_WB, HostBacking.RAM_WC])
def test_the_naive_plan_is_noticed(backing: HostBacking) -> None:
    for world in worlds(Facts(KvmMode.FORCED_WB, backing), NAIVE):
        assert notices(world, device_steps(NAIVE)), world


@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_a_step_left_out_is_noticed(case: Case) -> None:
    """In the first world in which it matters at all."""
    names = set()
    left_out: dict[str, tuple[World, Steps]] = {}
    for world in case.worlds:
        for name, less in case.steps.without_one(world):
            names.add(name)
            if name not in left_out and violation(world, less) is not None:
                left_out[name] = world, less
    assert set(left_out) == names
    for name, (world, less) in left_out.items():
        assert notices(world, less), (name, world)
