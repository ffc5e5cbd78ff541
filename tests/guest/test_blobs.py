"""A stock guest makes blobs, maps them write-combined, and has the DMA engine work on them.

The guest programs compare with their own computation and print a line for each check; one boot
serves many tests. On vhost-user-test-device-pci, which lets all of our features through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest import checks
from tests.rig.build import Rig
from tests.rig.qemu import Guest, Result
from tests.support.process import DaemonProcess, config_toml

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB = 1 << 20
# What QEMU says of a memory table with more than eight regions; the mappings work all the same.
# Only the layout that maps each blob by itself gets there.
TABLE_FULL = (
    "Failed preparing vhost-user memory table msg",
    "vhost_set_mem_table failed: No buffer space available (105)",
)


class Session:
    """One boot on one layout; a command is run once, however many tests look at its result."""

    def __init__(self, guest: Guest, layout: str) -> None:
        self.guest = guest
        self.layout = layout
        self._results: dict[str, Result] = {}

    def run(self, command: str) -> Result:
        """What the command printed, now or when it was run before."""
        if command not in self._results:
            self._results[command] = self.guest.run(command, timeout=200)
        return self._results[command]


@pytest.fixture(scope="module", params=["window", "per-blob"])
def session(request: pytest.FixtureRequest, rig: Rig, short_directory: Path) -> Iterator[Session]:
    """A booted guest."""
    config = config_toml(short_directory, layout=request.param)
    with (
        DaemonProcess(short_directory, config) as daemon,
        Guest(rig, "test", socket=daemon.socket()) as guest,
    ):
        guest.wait_boot()
        yield Session(guest, request.param)


def many_live(layout: str) -> str:
    """The command that has many blobs of 64 KiB at once: as many as the layout is for."""
    return f"many live {2000 if layout == 'window' else 200} 64"


@pytest.mark.parametrize("name", checks.BLOBS)
def test_blobs(session: Session, name: str) -> None:
    result = session.run("blobs 2026")
    assert checks.checks(result).get(name) == "ok", result.text


def test_every_blob_check_is_known(session: Session) -> None:
    """A check that the program makes and no test asserts would fail unseen."""
    checks.assert_checks(session.run("blobs 2026"), checks.BLOBS)


def test_the_guests_kernel_maps_the_range_write_combined(session: Session) -> None:
    """The kernel's own list, /sys/kernel/debug/x86/pat_memtype_list, has the blob's 3 MiB."""
    lines = [line for line in session.run("blobs 2026").lines if line.startswith("PAT ")]
    found = [re.search(r"\[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] (\S+)$", line) for line in lines]
    sizes = [(int(match[2], 16) - int(match[1], 16), match[3]) for match in found if match]
    assert (3 * MIB, "write-combining") in sizes or (3 * MIB - 1, "write-combining") in sizes, lines


@pytest.mark.parametrize("name", checks.BAD_PACKETS)
def test_bad_packets_write_nothing(session: Session, name: str) -> None:
    result = session.run("badpackets")
    assert checks.checks(result).get(name) == "ok", result.text


def test_every_bad_packet_check_is_known(session: Session) -> None:
    checks.assert_checks(session.run("badpackets"), checks.BAD_PACKETS)


@pytest.mark.parametrize("name", checks.FENCES)
def test_fences(session: Session, name: str) -> None:
    result = session.run("fences")
    assert checks.checks(result).get(name) == "ok", result.text


def test_many_blobs_at_once(session: Session, report: Callable[[str], None]) -> None:
    """2000 of them in the window layout, 200 where each is a mapping through QEMU."""
    result = session.run(many_live(session.layout))
    checks.assert_checks(result, checks.LIVE)
    for line in result.lines:
        if line.startswith("INFO"):
            report(f"blobs, {session.layout} layout: {line.removeprefix('INFO ')}")


def test_a_new_blob_is_zeros(session: Session, report: Callable[[str], None]) -> None:
    count = 400 if session.layout == "window" else 200
    result = session.run(f"many rounds {count}")
    checks.assert_checks(result, checks.ROUNDS)
    for line in result.lines:
        if line.startswith("INFO"):
            report(f"blobs, {session.layout} layout: {line.removeprefix('INFO ')}")


def test_qemu_did_not_complain(session: Session) -> None:
    """Of as many blobs as the layout is for, and of whatever else this boot did before."""
    session.run(many_live(session.layout))
    messages = session.guest.stderr
    if session.layout == "per-blob":
        messages = tuple(line for line in messages if not line.endswith(TABLE_FULL))
    assert messages == ()


def test_a_guest_gets_no_more_than_the_limit(rig: Rig, short_directory: Path) -> None:
    """Blobs beyond memory_limit are not there; those within are, and the device goes on."""
    directory = short_directory / "limit"  # the module's other daemon may still be there
    directory.mkdir()
    config = config_toml(directory, window="64MiB", memory_limit="256MiB", layout="per-blob")
    with (
        DaemonProcess(directory, config) as daemon,
        Guest(rig, "test", socket=daemon.socket()) as guest,
    ):
        guest.wait_boot()
        result = guest.run("many limit 24 16")
        checks.assert_checks(result, checks.LIMIT)
        [there] = [int(line.split()[1]) for line in result.lines if line.startswith("LIMIT")]
        # the framebuffer console and what each resource costs take some of the 16 that fit
        assert 13 <= there <= 16
