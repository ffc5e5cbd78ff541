"""What the server of a device does besides its session."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.support.agent_daemon import spec
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.events import Events
from vgpud.daemon import device_server
from vgpud.daemon.device_server import DeviceServer


def test_kvm_is_tried_in_a_thread_and_once_for_many_drivers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It makes two VMs, which takes milliseconds."""
    threads: list[threading.Thread] = []

    def probe() -> KvmFacts:
        threads.append(threading.current_thread())
        return KvmFacts(path="/dev/kvm", state=DeviceAccess.USABLE)

    async def main() -> None:
        server = DeviceServer(spec("gpu0", SlotOwner.FRONTEND), events=Events())
        for _ in range(3):
            await server._examine()
            server._find_kvm_mode()
        assert len(threads) == 1
        monkeypatch.setattr(device_server, "monotonic", lambda: time.monotonic() + 2)
        await server._examine()
        assert len(threads) == 2

    monkeypatch.setattr(probe_kvm, "probe", probe)
    asyncio.run(main())
    assert threading.main_thread() not in threads
