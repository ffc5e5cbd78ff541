"""Places that a user can't take all of."""

from __future__ import annotations

import os

import pytest

from vgpud.control.places import Places

PLACES = Places(10, each_user=4, reserved=3)
ROOT, ONE, TWO, THREE = 0, 1000, 1001, 1002


@pytest.mark.parametrize(
    ("uid", "taken", "room"),
    [
        (ONE, {}, True),
        (ONE, {ONE: 3}, True),
        (ONE, {ONE: 4}, False),
        (TWO, {ONE: 4}, True),
        (THREE, {ONE: 4, TWO: 3}, False),
        (ROOT, {ONE: 4, TWO: 3}, True),
        (THREE, {ONE: 4, ROOT: 5}, True),
        (THREE, {ONE: 4, ROOT: 6}, False),
        (ROOT, {ROOT: 9}, True),
        (ROOT, {ROOT: 10}, False),
        (os.geteuid(), {ONE: 4, TWO: 3}, True),
    ],
)
def test_there_is_room_for(uid: int, taken: dict[int, int], room: bool) -> None:
    assert PLACES.has_room(uid, taken) is room
    assert (
        PLACES.has_room(uid, [each for each, count in taken.items() for _ in range(count)]) is room
    )
