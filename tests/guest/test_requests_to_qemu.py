"""Requests that make vgpud send QEMU something, in every state of the guest: QEMU lives on.

QEMU 11.1 dies of what it finds on the back-end channel while its vhost device is stopped: while the
guest boots, is paused, has no driver, or has just been reset. The daemon sends nothing then.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.guest import checks
from tests.rig.build import Rig
from tests.rig.qemu import Guest
from tests.support.process import DaemonProcess, config_toml
from tests.support.until import until
from vgpud.client import Client
from vgpud.control.rpc import RpcError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB: Final = 1 << 20
MODES: Final = itertools.cycle(((1024, 768), (1152, 864), (1280, 800), (800, 600)))
layouts = pytest.mark.parametrize("layout", ["window", "per-blob"])


def first_mode(guest: Guest) -> str:
    """The mode that the guest's driver has read last, as a desktop asks that is woken."""
    connector = "/sys/class/drm/card0-Virtual-1"
    return guest.run(f"echo detect > {connector}/status; head -n 1 {connector}/modes").text


class Requests:
    """A client that makes every request about which QEMU is told something."""

    def __init__(self, daemon: DaemonProcess, client: Client, guest: Guest, layout: str) -> None:
        self._daemon, self._client, self._guest, self._layout = daemon, client, guest, layout

    def resize(self) -> tuple[int, int]:
        """Offer another mode by the control API."""
        width, height = next(MODES)
        self._client.call("device.resize", {"device": "gpu0", "width": width, "height": height})
        return width, height

    def reload(self) -> None:
        """Offer another mode by the configuration file."""
        width, height = next(MODES)
        directory = self._daemon.config.parent
        text = config_toml(directory, layout=self._layout, outputs=f'["{width}x{height}"]')
        self._daemon.config.write_text(text)
        self._client.call("config.reload")

    def blob(self) -> str:
        """Make, map, unmap and destroy a blob of the VMM's; return why it was not mapped, if so."""
        refusal = ""
        made: Any = self._client.call("blob.create", {"device": "gpu0", "size": MIB})
        where = {"device": "gpu0", "blob": made["blob"]}
        try:
            self._client.call("blob.map", where)
            self._client.call("blob.unmap", where)
        except RpcError as error:
            refusal = error.message
        self._client.call("blob.destroy", where)
        return refusal

    def all(self) -> str:
        """Make all requests, after each of which QEMU lives; return why no blob was mapped."""
        self.resize()
        self.assert_qemu_lives()
        self.reload()
        self.assert_qemu_lives()
        refusal = self.blob()
        self.assert_qemu_lives()
        return refusal

    def while_booting(self) -> None:
        """Make all requests again and again until the guest has booted."""
        seen = len(self._guest.console)
        while not any("RIG up" in line.text for line in self._guest.console[seen:]):
            with contextlib.suppress(RpcError):  # a blob is gone if the driver starts meanwhile
                self.all()
        self._guest.wait_boot()

    def assert_qemu_lives(self) -> None:
        """QEMU answers, also after its main loop had time for what it was sent."""
        for _ in range(2):
            assert self._guest.exit_status is None, self._guest.stderr
            self._guest.qmp("query-status")


@pytest.fixture
def served(rig: Rig, short_directory: Path, layout: str) -> Iterator[tuple[Guest, Requests]]:
    """A guest that boots, and a client of its daemon."""
    with (
        DaemonProcess(short_directory, config_toml(short_directory, layout=layout)) as daemon,
        Client(short_directory / "control.sock") as client,
        Guest(rig, "test", socket=daemon.socket()) as guest,
    ):

        def connected() -> bool:
            found: Any = client.call("device.get", {"device": "gpu0"})
            return bool(found["connected"])

        until(connected)
        yield guest, Requests(daemon, client, guest, layout)


@layouts
def test_all_requests_in_all_states(served: tuple[Guest, Requests], layout: str) -> None:
    guest, requests = served
    requests.while_booting()
    assert requests.all() == ""

    guest.qmp("stop")
    refusal = requests.all()
    # Once the window is mapped, blobs come into it without QEMU.
    assert refusal == "" if layout == "window" else "try again when it runs" in refusal
    width, height = requests.resize()
    guest.qmp("cont")
    until(lambda: first_mode(guest) == f"{width}x{height}", pause=0.1)
    assert requests.all() == ""

    assert guest.run("cd /sys/bus/virtio/drivers/virtio_gpu && gpu=$(echo virtio*)").status == 0
    assert guest.run("echo $gpu > unbind").status == 0
    refusal = requests.all()
    assert refusal == "" if layout == "window" else "try again when it runs" in refusal
    assert guest.run("echo $gpu > bind").status == 0
    assert requests.all() == ""

    guest.qmp("system_reset")
    requests.while_booting()
    assert requests.all() == ""
    checks.assert_checks(guest.run("blobs 1"), checks.BLOBS)
    requests.assert_qemu_lives()


@layouts
def test_a_paused_guest_is_notified_of_its_mode_when_it_continues(
    served: tuple[Guest, Requests], layout: str
) -> None:
    guest, requests = served
    guest.wait_boot()
    uevents = "cat /sys/kernel/uevent_seqnum"
    before = guest.run(uevents).text
    guest.qmp("stop")
    requests.resize()
    guest.qmp("cont")
    until(lambda: guest.run(uevents).text != before, pause=0.1)


@layouts
def test_reset_and_paused_while_the_guest_maps(served: tuple[Guest, Requests], layout: str) -> None:
    """Requests are under way at any moment of a stop: also the window's at the first host blob."""
    guest, requests = served
    guest.wait_boot()
    for delay in (0.0, 0.05, 0.1, 0.2):
        guest.start("many churn")
        time.sleep(delay)
        guest.reset()
        requests.assert_qemu_lives()
    guest.start("many churn")
    guest.wait_line(r"^ROUND 0")
    for _ in range(60):
        guest.qmp("stop")
        guest.qmp("cont")
        time.sleep(0.01)
    requests.assert_qemu_lives()
    if layout == "window":  # with more than eight regions, QEMU can't start its device again
        guest.wait_line(r"^ROUND")
    guest.reset()
    checks.assert_checks(guest.run("blobs 2"), checks.BLOBS)
    assert checks.driver_errors(guest) == ()


@layouts
def test_the_daemon_ends_while_the_guest_maps(rig: Rig, short_directory: Path, layout: str) -> None:
    with contextlib.ExitStack() as stack:
        config = config_toml(short_directory, layout=layout)
        daemon = stack.enter_context(DaemonProcess(short_directory, config))
        with Guest(rig, "test", socket=daemon.socket()) as guest:
            guest.wait_boot()
            guest.start("many churn")
            guest.wait_line(r"^ROUND 0")
            stack.close()
            for _ in range(10):
                assert guest.exit_status is None, guest.stderr
                guest.qmp("query-status")
                time.sleep(0.1)
