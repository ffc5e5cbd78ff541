"""What the client loads: no event loop, no daemon, and no compiled module that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Of a program that only calls methods, and of a VMM that sets slots in a VM object of its own: what
# maps a slot's memory is compiled (uapi._linux), KVM's whole ABI is not needed before the VM is a
# bare descriptor.
NEVER = {"asyncio", "numpy", "vgpud.daemon", "vgpud.gpu", "vgpud.native", "vgpud.uapi.kvm"}
NOT_FOR_CALLS = NEVER | {"pydantic", "cffi", "_cffi_backend", "vgpud.slots", "vgpud.uapi"}


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import vgpud.client", "from vgpud.client import Client"])
def test_calls_take_no_compiled_module(code: str) -> None:
    modules = loaded(code)
    assert "vgpud.client.client" in modules
    assert not modules & NOT_FOR_CALLS


def test_an_agent_takes_neither_asyncio_nor_the_daemon() -> None:
    modules = loaded("from vgpud.client import SlotAgent")
    assert "vgpud.client.slot_agent" in modules
    assert not modules & NEVER


def test_a_bare_descriptor_takes_the_whole_abi() -> None:
    code = """
import os, socket
from vgpud.client import SlotAgent
from vgpud.errors import HostError
SlotAgent(socket.socketpair()[0], 0, numbers=range(9)).close()
"""
    assert "vgpud.uapi.kvm" in loaded(code)


def test_there_is_nothing_else() -> None:
    assert loaded("import vgpud.client; assert not hasattr(vgpud.client, 'Daemon')")
