"""Users and groups: by name, by number, and what is neither."""

from __future__ import annotations

import grp
import pwd

import pytest

from vgpud.unix.accounts import MAX_ID, group_id, user_id


def test_names_are_looked_up() -> None:
    assert user_id(pwd.getpwuid(0).pw_name) == 0
    assert group_id(grp.getgrgid(0).gr_name) == 0


@pytest.mark.parametrize("name", ["no such one", "a\0b", "\ud800", "ж", "٣", ""])
def test_there_is_no_such_one(name: str) -> None:
    assert user_id(name) is group_id(name) is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0", 0),
        ("107", 107),
        ("0" * 5000, 0),
        ("0" * 5000 + "107", 107),
        (str(MAX_ID), MAX_ID),
        (str(MAX_ID + 1), None),
        ("0" * 30 + "9999999999", None),
        ("9" * 5000, None),
    ],
    ids=lambda value: f"{str(value)[-12:]}",
)
def test_numbers(name: str, number: int | None) -> None:
    assert user_id(name) == group_id(name) == number
