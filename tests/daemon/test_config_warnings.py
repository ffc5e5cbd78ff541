"""What is valid in a configuration, but is not likely to be meant."""

from __future__ import annotations

import pytest

from vgpud.daemon.config import Config
from vgpud.daemon.log_limit import LogLimit


@pytest.mark.parametrize(
    ("table", "warning"),
    [
        (
            'outputs = ["8192x8192"]',
            (
                '[[device]] 1: memory_limit = "1GiB": is no more than its window, 256MiB, and 3'
                " frames of each output (8192x8192), which a guest is charged for; where memory is"
                ' refused, frames are lost: set "1025MiB" or more, or smaller outputs (device a)'
            ),
        ),
        ('memory_limit = "256MiB"', 'set "268MiB" or more'),
        ('outputs = ["3840x2160", "3840x2160", "3840x2160"]\nwindow = "1GiB"', '"1309MiB" or more'),
        ('outputs = ["3840x2160", "3840x2160", "3840x2160"]\nwindow = "512MiB"', None),
        ('outputs = ["8192x8192"]\nmemory_limit = "1536MiB"', None),
        ("", None),
    ],
)
def test_limits_that_do_not_go_together(table: str, warning: str | None) -> None:
    found = [*Config.from_toml(f'[[device]]\nname = "a"\n{table}').warnings()]
    assert len(found) == (warning is not None)
    if warning is not None:
        assert warning in found[0]


def test_the_window_is_charged_where_it_holds_something_only() -> None:
    text = '[[device]]\nname = "a"\nmemory_limit = "12MiB"\n[[slot_policy]]\nlayout = "per-blob"'
    assert [*Config.from_toml(text).warnings()] == []
    [warning] = Config.from_toml(text.replace("12MiB", "11MiB")).warnings()
    assert "window" not in warning


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ('slots = "agent"', None),
        ('slots = "agent"\nallow_users = ["0"]', None),
        ('slots = "agent"\nallow_users = ["0"]\ngrants = ["observe", "memory"]', None),
        (
            'slots = "agent"\nallow_users = ["0"]\ngrants = ["observe"]',
            'allow_users and allow_groups can\'t be its agent, as grants has no "memory"',
        ),
        ('grants = ["observe", "change", "memory"]', None),
        ('grants = ["observe"]', 'grants = ["observe"]: of no effect without allow_users or'),
        ("grants = []", "grants = []: of no effect without allow_users or"),
        (
            'grants = []\nallow_groups = ["0"]',
            "grants = []: allow_users and allow_groups may do",
        ),
        ('grants = ["observe"]\nallow_groups = ["0"]', None),
        ('[[slot_policy]]\nmatch = { device = "gp*" }', None),
        (
            '[[slot_policy]]\nmatch = { device = "gpuO" }\nfallback = "refuse"',
            '[[slot_policy]] 1: match.device = "gpuO": matches the name of no [[device]], so that',
        ),
    ],
)
def test_keys_that_do_not_go_together(text: str, warning: str | None) -> None:
    found = [*Config.from_toml(f'[[device]]\nname = "gpu0"\n{text}').warnings()]
    assert len(found) == (warning is not None)
    if warning is not None:
        assert warning in found[0]
        assert "device gpu0" in found[0] or "slot_policy" in found[0]


def test_an_agent_without_a_control_socket() -> None:
    text = '[daemon]\ncontrol_socket = ""\n[[device]]\nname = "a"\nslots = "agent"'
    [warning] = Config.from_toml(text).warnings()
    assert 'no agent can attach, as control_socket is ""' in warning


def test_accounts_that_this_host_does_not_know() -> None:
    text = """
        [daemon]
        observe_users = ["no such user", "0"]
        [[device]]
        name = "a"
        socket_group = "no such group"
        [[device]]
        name = "b"
        socket_group = "0"
    """
    users, group = Config.from_toml(text).host_warnings()
    assert "observe_users: no such user: unknown to this system" in users
    assert group.startswith("[[device]] a: socket_group: no such group: unknown to this system")


def test_all_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    devices = "".join(f'[[device]]\nname = "g{n}"\ngrants = []\n' for n in range(60))
    limit = LogLimit()
    caplog.handler.addFilter(limit)
    try:
        Config.from_toml(devices).log_warnings()
    finally:
        caplog.handler.removeFilter(limit)
    assert len(caplog.messages) == 60
