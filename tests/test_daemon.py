"""The daemon as a library: what a VMM that has it in its own process hands to it."""

from __future__ import annotations

import pytest

from vgpud.config import Config
from vgpud.daemon import Daemon
from vgpud.errors import ConfigError
from vgpud.serve.agent_slots import AgentSlots
from vgpud.serve.events import Events

TEXT = '[[device]]\nname = "gpu0"\nslots = "local"\n[[device]]\nname = "gpu1"\nslots = "local"\n'


def test_slots_in_a_vm_of_this_process_are_those_that_are_given() -> None:
    slots = {name: AgentSlots(name, Events()) for name in ("gpu0", "gpu1")}
    daemon = Daemon(Config.from_toml(TEXT), slots=slots)
    assert {name: device.slots for name, device in daemon.devices.items()} == slots


def test_a_device_without_its_vm_is_a_fault_of_the_configuration() -> None:
    slots = {"gpu0": AgentSlots("gpu0", Events())}
    with pytest.raises(ConfigError) as caught:
        Daemon(Config.from_toml(TEXT), slots=slots)
    [line] = str(caught.value).splitlines()
    assert 'device gpu1: slots = "local": this process has no VM' in line
