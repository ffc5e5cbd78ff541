"""Callers with some grants for some devices, at a whole daemon's control socket."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon_thread import DaemonThread
from vgpud.client import Client
from vgpud.control.access import AccessList
from vgpud.control.rpc import RpcError
from vgpud.daemon.config import Config

TEXT = """
[daemon]
runtime_dir = "{directory}"
allow_users = []
{daemon}
[[device]]
name = "mine"
window = "1MiB"
slots = "agent"
{mine}
[[device]]
name = "other"
window = "1MiB"
"""
AGENT = {"device": "mine", "guest_phys_addr": None, "first_slot": 1, "slot_count": 2}


class Grants(AccessList):
    """The grants by rules alone: the tests run as the daemon's own user."""

    def __init__(self, config: Config) -> None:
        super().__init__(*config.access_rules())
        self._own_user = -1


USER = f'allow_users = ["{os.geteuid()}"]'


@contextmanager
def serving(directory: Path, *, daemon: str = "", mine: str = "") -> Iterator[DaemonThread]:
    config = Config.from_toml(TEXT.format(directory=directory, daemon=daemon, mine=mine))
    with DaemonThread(config) as running:
        control = running.daemon._control
        assert control is not None
        control.access = Grants(config)
        yield running


def refusal(client: Client, method: str, params: dict[str, Any] | None = None) -> Any:
    with pytest.raises(RpcError) as caught:
        client.call(method, params)
    data = caught.value.data
    assert isinstance(data, dict)
    return data["kind"], data.get("grant"), data.get("device")


def test_a_device_is_all_that_its_user_sees(short_directory: Path) -> None:
    grants = f'{USER}\ngrants = ["observe"]'
    with (
        serving(short_directory, mine=grants) as running,
        Client(short_directory / "control.sock") as client,
    ):
        assert [each["name"] for each in client.pages("device.list")] == ["mine"]
        assert [each["name"] for each in client.call("daemon.info")["devices"]] == ["mine"]
        assert client.call("device.get", {"device": "mine"})["name"] == "mine"
        for method in ("blob.list", "slot.list"):
            assert client.call(method)["total"] == 0
            assert refusal(client, method, {"device": "other"})[1] == "observe"
        metrics = client.call("metrics.get")["text"]
        assert 'device="mine"' in metrics
        assert 'device="other"' not in metrics
        events = client.events()
        publish = running.daemon.events.publish
        for device in ("other", None, "mine"):
            running._loop.call_soon_threadsafe(partial(publish, "test", "", device=device))
        assert next(events)["device"] == "mine"
        events.close()
        assert refusal(client, "device.get", {"device": "other"}) == (
            "not-allowed",
            "observe",
            "other",
        )
        resize = {"device": "mine", "width": 640, "height": 480}
        assert refusal(client, "device.resize", resize) == ("not-allowed", "change", "mine")
        assert refusal(client, "blob.create", {"device": "mine", "size": 4096})[1] == "memory"
        assert refusal(client, "agent.attach", AGENT)[1] == "memory"
        assert refusal(client, "config.reload") == ("not-allowed", "change", None)


def test_an_agent_needs_the_memory_of_its_device_alone(short_directory: Path) -> None:
    with (
        serving(short_directory, mine=f'{USER}\ngrants = ["memory"]') as running,
        Client(short_directory / "control.sock") as client,
    ):
        assert client.call("agent.attach", AGENT)["device"] == "mine"
        assert refusal(client, "agent.attach", {**AGENT, "device": "other"})[1] == "memory"
        assert refusal(client, "device.list") == ("not-allowed", "observe", None)
        agent = running.daemon.devices["mine"].agent
        assert agent is not None
        assert agent.connection is not None
        control = running.daemon._control
        assert control is not None

        def take_away() -> None:
            control.access = Grants(Config.from_toml("[daemon]\nallow_users = []"))

        running._loop.call_soon_threadsafe(take_away)
        assert refusal(client, "agent.attach", AGENT) == ("not-allowed", None, None)
        assert agent.connection is None


def test_an_observer_of_all_changes_nothing(short_directory: Path) -> None:
    observe = USER.replace("allow", "observe")
    with (
        serving(short_directory, daemon=observe),
        Client(short_directory / "control.sock") as client,
    ):
        assert [each["name"] for each in client.pages("device.list")] == ["mine", "other"]
        assert refusal(client, "config.reload")[1] == "change"
        assert refusal(client, "blob.export", {"device": "mine", "blob": 1})[1] == "memory"


def test_by_default_a_member_of_the_vmms_group_gets_nothing() -> None:
    config = Config.default()
    assert config.daemon.allow_groups == ()
    [rule] = [rule for rule in config.access_rules() if rule.users or rule.groups]
    assert (rule.users, rule.groups) == (("root",), ())


def test_a_batch_is_checked_call_by_call(short_directory: Path) -> None:
    with (
        serving(short_directory, mine=f'{USER}\ngrants = ["observe"]'),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(str(short_directory / "me"))
        sock.settimeout(5)
        calls = [
            {"jsonrpc": "2.0", "id": name, "method": "device.get", "params": [name]}
            for name in ("mine", "other")
        ]
        sock.sendto(json.dumps(calls).encode(), str(short_directory / "control.sock"))
        mine, other = json.loads(sock.recv(1 << 20))
        assert mine["result"]["name"] == "mine"
        assert other["error"]["data"]["kind"] == "not-allowed"
