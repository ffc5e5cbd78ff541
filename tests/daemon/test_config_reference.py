"""The commented reference of the configuration, and its JSON schema."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from vgpud.coherency.slot_policy import BlobKind, Match, Rule
from vgpud.daemon.config import Config, default_toml, schema

ROOT = Path(__file__).parents[2]


def test_the_file_of_defaults_says_the_defaults() -> None:
    config = Config.from_toml(default_toml())
    assert config.daemon == Config.default().daemon
    assert config.device == Config.default().device
    assert [policy.rule() for policy in config.slot_policy] == [Rule()]


def test_the_examples_in_the_file_of_defaults_are_fit_for_use() -> None:
    def used(line: str) -> str:
        example = line.startswith(
            ("# runtime_dir =", "# socket =", "# socket_group =", "# match =")
        )
        return line.removeprefix("# ") if example else line

    config = Config.from_toml("\n".join(used(line) for line in default_toml().splitlines()))
    assert config.runtime_dir == Path("/run/vgpud")
    assert config.slot_policy[0].rule().match == Match("gpu*", BlobKind.HOST3D, 4096)


def test_the_file_in_the_tree_is_the_one_that_is_printed() -> None:
    assert (ROOT / "config" / "vgpud.toml").read_text() == default_toml()


@pytest.mark.parametrize(
    ("file", "good"),
    [
        (default_toml(), True),
        ('[[device]]\nname = "a"\nrender_node = "/dev/dri/renderD128"', True),
        ("device = []", False),
        ("[[device]]", False),
        ('[[device]]\nname = "-a"', False),
        ('[[device]]\nname = "a"\noutputs = []', False),
        (f'[[device]]\nname = "a"\noutputs = {["64x64"] * 17}', False),
        ('[[device]]\nname = "a"\nrender_node = "renderD128"', False),
        ('[[device]]\nname = "a"\nsocket_group = "kvm"\nsocket_mode = "0600"', True),
        ('[[device]]\nname = "a"\nsocket_mode = "660"', True),
        ('[[device]]\nname = "a"\nsocket_mode = "0060"', False),
        ('[[device]]\nname = "a"\nsocket_mode = "4660"', False),
        ('[[device]]\nname = "a"\nsocket_mode = "rw-rw----"', False),
        ('[[device]]\nname = "a"\nsocket_mode = 432', False),
        ('[[device]]\nname = "a"\nrenderers = []', True),
        ('[[device]]\nname = "a"\nrenderers = ["dma"]', True),
        ('[[device]]\nname = "a"\nrenderers = ["dma", "dma"]', False),
        ('[[device]]\nname = "a"\nrenderers = ["virgl"]', False),
        ('[daemon]\nruntime_dir = "run"', False),
        ('[daemon]\nallow_users = ["domain users", "Käthe", "DOM\\\\user$"]', True),
        ('[daemon]\nallow_users = ["a:b"]', False),
        ('[[device]]\nname = "a"\ngrants = ["observe", "memory"]', True),
        ('[[device]]\nname = "a"\ngrants = ["observe", "observe"]', False),
        ('[[device]]\nname = "a"\ngrants = ["root"]', False),
    ],
)
def test_the_schema_agrees_with_the_check(file: str, good: bool) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid(tomllib.loads(file)) == good


def test_the_schema_speaks_of_what_a_file_may_say() -> None:
    found = schema()
    device = found["$defs"]["DeviceTable"]["properties"]
    assert device["window"] == {
        "default": "256MiB",
        "description": "The host-visible BAR window: a power of two, 64KiB or more.",
        "pattern": "^[0-9]+(KiB|MiB|GiB)$",
        "title": "Window",
        "type": "string",
    }
    assert found["$defs"]["SlotOwner"]["enum"] == ["frontend", "agent", "local"]
    assert set(found["properties"]) == {"daemon", "device", "slot_policy"}
    json.dumps(found)
