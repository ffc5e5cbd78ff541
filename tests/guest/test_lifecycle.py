"""Guests come and go: reset, rebooted, unbound, killed, several at once; one daemon stays."""

from __future__ import annotations

import itertools
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.guest import checks
from tests.guest.pictures import picture, settled_difference
from tests.rig.build import Rig
from tests.rig.qemu import DEVICES, Device, Guest
from tests.support.process import BACK_END, DaemonProcess, Process, config_toml

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


def play_kms(guest: Guest) -> None:
    """All scenes of `kms`, with a look at the first where the device has a display."""
    for scene in checks.scenes(guest, "kms"):
        if scene == "mode":
            expected = picture(1, 0, 0, 1280, 800)
            assert settled_difference(expected, guest.screendump)[1] == ""


@pytest.mark.parametrize("layout", ["window", "per-blob"])
@pytest.mark.parametrize("load", ["many churn", "many busy"])
def test_boot_reset_boot_again(rig: Rig, short_directory: Path, layout: str, load: str) -> None:
    with DaemonProcess(short_directory, config_toml(short_directory, layout=layout)) as daemon:
        idle = daemon.idle_files()
        with Guest(rig, "test", socket=daemon.socket()) as guest:
            guest.wait_boot()
            checks.assert_checks(guest.run("blobs 1"), checks.BLOBS)
            # the reset button, while blobs are mapped and work is under way
            guest.start(load)
            guest.wait_line(r"^ROUND [1-9]")
            guest.reset()
            checks.assert_checks(guest.run("blobs 2"), checks.BLOBS)
            # the guest's own reboot
            guest.start("reboot -f")
            guest.wait_boot()
            checks.assert_checks(guest.run("blobs 3"), checks.BLOBS)
            checks.assert_checks(guest.run("many rounds 40"), checks.ROUNDS)
            assert checks.driver_errors(guest) == ()
        assert daemon.settled_files(idle) == idle


def test_boot_reset_boot_again_with_a_display(rig: Rig, short_directory: Path) -> None:
    with DaemonProcess(short_directory, config_toml(short_directory)) as daemon:
        idle = daemon.open_files()
        with Guest(rig, "gpu", socket=daemon.socket()) as guest:
            guest.wait_boot()
            play_kms(guest)
            guest.start("kms loop")
            guest.wait_line(r"^ROUND 0")
            guest.reset()
            play_kms(guest)
            guest.start("reboot -f")
            guest.wait_boot()
            play_kms(guest)
            assert checks.driver_errors(guest) == ()
            assert guest.stderr == ()
        assert daemon.settled_files(idle) == idle


@pytest.mark.parametrize(
    ("device", "layout", "load"),
    [
        ("test", "window", "many churn"),
        ("test", "per-blob", "many churn"),
        ("test", "window", "kms loop"),
        ("gpu", "window", "kms loop"),
    ],
)
def test_qemu_killed_in_mid_flight(
    rig: Rig, short_directory: Path, device: Device, layout: str, load: str
) -> None:
    """What it held is given back, and the next QEMU finds a device as new."""
    with DaemonProcess(short_directory, config_toml(short_directory, layout=layout)) as daemon:
        idle = daemon.open_files()
        for delay in (0.0, 0.3):
            with Guest(rig, device, socket=daemon.socket()) as guest:
                guest.wait_boot()
                guest.start(load)
                guest.wait_line(r"^ROUND 0")
                time.sleep(delay)
                guest.kill()
                assert guest.exit_status == -signal.SIGKILL
            assert daemon.settled_files(idle) == idle
        with Guest(rig, device, socket=daemon.socket()) as guest:
            guest.wait_boot()
            if device == "gpu":
                play_kms(guest)
            else:
                checks.assert_checks(guest.run("blobs 4"), checks.BLOBS)
                checks.assert_checks(guest.run("many rounds 40"), checks.ROUNDS)


def test_two_machines_at_once(rig: Rig, short_directory: Path) -> None:
    """Each has its own device; one is killed and the other does not notice."""
    names = ("left", "right")
    config = config_toml(short_directory, names)
    with (
        DaemonProcess(short_directory, config, devices=names) as daemon,
        Guest(rig, "test", socket=daemon.socket("left")) as left,
        Guest(rig, "test", socket=daemon.socket("right")) as right,
    ):
        left.wait_boot()
        right.wait_boot()
        left.start("blobs 5")
        right.start("blobs 6")
        checks.assert_checks(left.finish(120), checks.BLOBS)
        checks.assert_checks(right.finish(120), checks.BLOBS)
        left.start("many churn")
        right.start("many live 500 64")
        left.wait_line(r"^ROUND [1-9]")
        left.kill()
        checks.assert_checks(right.finish(120), checks.LIVE)
        checks.assert_checks(right.run("badpackets"), checks.BAD_PACKETS)
        assert right.stderr == ()


@pytest.mark.parametrize("device", ["test", "gpu"])
def test_driver_unbound_and_bound_again(rig: Rig, short_directory: Path, device: Device) -> None:
    """QEMU then hands over a second display socket on the same session."""
    with (
        DaemonProcess(short_directory, config_toml(short_directory)) as daemon,
        Guest(rig, device, socket=daemon.socket()) as guest,
    ):
        guest.wait_boot()
        assert guest.run("cd /sys/bus/virtio/drivers/virtio_gpu && gpu=$(echo virtio*)").status == 0
        for _ in range(3):
            assert guest.run("echo $gpu > unbind").status == 0
            assert guest.run("echo $gpu > bind").status == 0
            assert guest.run("ls /dev/dri").lines[0].split()[0] == "card0"
        if device == "gpu":
            play_kms(guest)
        else:
            checks.assert_checks(guest.run("blobs 7"), checks.BLOBS)


@pytest.mark.parametrize("device", ["test", "gpu"])
def test_the_printed_qemu_line_boots(rig: Rig, short_directory: Path, device: Device) -> None:
    """`vgpud serve` prints how to start QEMU; here its chardev and device options are taken."""
    with DaemonProcess(short_directory, config_toml(short_directory)) as daemon:
        words = shlex.split(daemon.output, comments=True)
        commands = " ".join(words).split("qemu-system-x86_64 ")[1:]
        wanted = DEVICES[device].split(",")[0]
        [command] = [command.split() for command in commands if wanted in command]
        options = tuple(
            word
            for option, value in itertools.pairwise(command)
            if option in {"-chardev", "-device"}
            for word in (option, value)
        )
        assert len(options) == 4
        with Guest(rig, device, device_arguments=options) as guest:
            guest.wait_boot()
            if device == "gpu":
                play_kms(guest)
            else:
                checks.assert_checks(guest.run("many rounds 20"), checks.ROUNDS)


def test_the_back_end_program_serves_a_guest(rig: Rig, short_directory: Path) -> None:
    """`vhost-user-vgpu --socket-path`, in the C back-end's place; SIGTERM ends it at once."""
    socket = short_directory / "program.sock"
    with Process(*BACK_END, f"--socket-path={socket}") as program:
        program.until(socket.is_socket)
        time.sleep(0.1)
        with Guest(rig, "gpu", socket=socket) as guest:
            guest.wait_boot()
            play_kms(guest)
            program.terminate()
            started = time.monotonic()
            assert program.wait(10) == 0
            assert time.monotonic() - started < 2
    assert "Traceback" not in program.log
