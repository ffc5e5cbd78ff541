"""Quotas: never more than the limit, and everything given back once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.errors import VgpudError
from vgpud.gpu.errors import response_code
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.wire.protocol import ResponseType

LIMIT = 100


@given(st.lists(st.integers(0, LIMIT + 20) | st.integers(-9, -1), max_size=50))
def test_what_is_used_is_what_is_held(steps: list[int]) -> None:
    """A number takes that many bytes; a negative one releases a former charge, perhaps again."""
    quota = Quota(LIMIT)
    held: list[tuple[Charge, int]] = []
    released: set[int] = set()
    for step in steps:
        used = sum(size for at, (_, size) in enumerate(held) if at not in released)
        assert quota.used == used
        if step < 0:
            if held:
                which = -step % len(held)
                held[which][0].release()
                released.add(which)
        elif step > LIMIT - used:
            with pytest.raises(VgpudError) as caught:
                quota.charge(step)
            assert response_code(caught.value) == ResponseType.ERR_OUT_OF_MEMORY
        else:
            held.append((quota.charge(step), step))
    for charge, _ in held:
        charge.release()
    assert quota.used == 0


@pytest.mark.parametrize("size", [LIMIT + 1, 65535 * 65535 * 4, 1 << 64])
def test_too_much_takes_nothing(size: int) -> None:
    quota = Quota(LIMIT)
    with pytest.raises(VgpudError, match=f"{size} bytes asked for, 100 left of 100"):
        quota.charge(size)
    quota.charge(LIMIT)
    assert quota.used == LIMIT


def test_the_last_byte_can_be_had_and_no_more() -> None:
    quota = Quota(LIMIT)
    quota.charge(LIMIT - 1)
    last = quota.charge(1)
    with pytest.raises(VgpudError):
        quota.charge(1)
    last.release()
    quota.charge(1)


def test_quotas_are_apart() -> None:
    one, other = Quota(LIMIT), Quota(LIMIT)
    one.charge(LIMIT)
    other.charge(LIMIT)


def test_what_was_refused_is_a_problem_until_there_is_more() -> None:
    quota = Quota(4096)
    quota.note_refusal("CREATE: none left")
    assert quota.problem == (
        "memory was refused once: CREATE: none left; raise memory_limit, now 4 KiB, if the host has"
        " more memory, or use smaller outputs"
    )
    quota.note_refusal("a copy: none left")
    assert "refused 2 times, the last time: a copy: none left" in quota.problem


def test_a_refusal_is_forgotten_with_its_limit_and_its_driver() -> None:
    quota = Quota(4096)
    found = [quota.problem]
    quota.note_refusal("CREATE: none left")
    quota.limit = 4096
    found.append(quota.problem)
    quota.limit = 8192
    found.append(quota.problem)
    quota.note_refusal("CREATE: none left")
    quota.forget_refusals()
    found.append(quota.problem)
    assert [problem is None for problem in found] == [True, False, True, True]
