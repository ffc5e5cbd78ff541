"""The configuration is read anew a hundred times while a stock guest flips pages.

Every second file has a fault. The guest must not notice any of it, nor may the daemon keep
anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.guest.checks import driver_errors
from tests.guest.pictures import Picture, difference, picture, settled_difference
from tests.rig.build import Rig
from tests.rig.qemu import Device, Guest
from tests.support.png import decode
from tests.support.process import DaemonProcess, config_toml
from tests.support.until import until
from vgpud.client import Client
from vgpud.control.rpc import RpcError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

RELOADS: Final = 100
PAUSE_S: Final = 0.02
"""Between two of them, so that frames fall before, into and after each."""
WIDTH, HEIGHT, STAMP = 1280, 800, 64
EXTRA_DEVICE: Final = '\n[[device]]\nname = "late"\n'
FAULTS: Final = (
    ('memory_limit = "1GiB"', 'memory_limit = "much"'),
    ('window = "256MiB"', 'window = "3MiB"'),
    ("[daemon]", "[deamon]"),
    ('memory_type = "wc"', "memory_type = ["),
    ('name = "gpu0"', 'name = "gpu0"\nsocket = "control.sock"'),
)


def good(original: str, number: int) -> str:
    """A file that differs from the last one in what holds at once."""
    text = original.replace('"1GiB"', f'"{1024 + number}MiB"')
    text = text.replace('memory_type = "wc"', f'memory_type = "{("wc", "uc", "wb")[number % 3]}"')
    text = text.replace("[daemon]", f'[daemon]\nallow_users = ["root", "{number}"]')
    return text + (EXTRA_DEVICE if number % 4 == 1 else "")


def bad(original: str, number: int) -> str:
    """A file with a fault."""
    right, wrong = FAULTS[number % len(FAULTS)]
    assert right in original
    return original.replace(right, wrong)


def reload(
    daemon: DaemonProcess, client: Client, events: Generator[Any], number: int, text: str
) -> str:
    """Have a file read, by signal or by call, and return the kind of the event that comes of it."""
    daemon.config.write_text(text)
    if number % 3 == 0:
        os.kill(daemon.pid, signal.SIGHUP)
    else:
        with contextlib.suppress(RpcError):
            client.call("config.reload")
    event = next(events)
    return str(event["kind"])


def stamped(frames: int) -> Picture:
    """What `kms frames` leaves on the screen: the buffer shown last, with every second stamp."""
    screen = picture(1 + frames % 2, 0, 0, WIDTH, HEIGHT)
    for frame in range(2 - frames % 2, frames + 1, 2):
        x, y = frame * 53 % (WIDTH - STAMP), frame * 29 % (HEIGHT - STAMP)
        screen[y : y + STAMP, x : x + STAMP] = picture(1000 + frame, x, y, STAMP, STAMP)
    return screen


def flushes(client: Client) -> int:
    """How many frames the guest has handed over, as the daemon counts."""
    metrics: Any = client.call("metrics.get")
    found = re.search(
        r'^vgpud_commands_total\{.*command="resource_flush".*\} ([0-9.]+)$',
        metrics["text"],
        re.MULTILINE,
    )
    assert found is not None, metrics["text"]
    return int(float(found[1]))


def screenshot(client: Client) -> Picture:
    """The screen as the daemon has it."""
    _, fd = client.call_with_fd("device.screenshot", {"device": "gpu0"})
    with fd, open(fd.fileno(), "rb", closefd=False) as file:
        file.seek(0)
        return decode(file.read())


@pytest.mark.parametrize("device", ["test", "gpu"])
def test_a_hundred_reloads_while_a_guest_flips_pages(
    rig: Rig, short_directory: Path, device: Device, report: Callable[[str], None]
) -> None:
    original = config_toml(short_directory)
    with (
        DaemonProcess(short_directory, original) as daemon,
        Guest(rig, device, socket=daemon.socket()) as guest,
        Client(short_directory / "control.sock") as client,
        Client(short_directory / "control.sock") as subscriber,
    ):
        guest.wait_boot()
        events = subscriber.events(["config.*"])
        guest.start("kms frames")
        guest.wait_line("^READY start$")
        before, files = flushes(client), daemon.idle_files()
        guest.start("")
        seen, began = [], time.monotonic()
        for number in range(RELOADS):
            text = (bad if number % 2 else good)(original, number)
            seen.append(reload(daemon, client, events, number, text))
            time.sleep(PAUSE_S)
        seconds = time.monotonic() - began
        guest.start("")
        flipped = guest.wait_line(r"^FLIPPED (\d+) in ([0-9.]+) s$")
        guest.wait_line("^READY frames$")
        frames = int(flipped[1])
        assert seen == ["config.reloaded", "config.rejected"] * (RELOADS // 2)
        # The guest does not wait for the last flips that it has queued.
        until(lambda: flushes(client) - before >= frames, complaint="the queue is not empty")
        assert flushes(client) - before == frames
        expected = stamped(frames)
        assert difference(expected, screenshot(client)) == ""
        if device == "gpu":
            assert settled_difference(expected, guest.screendump)[1] == ""
        assert driver_errors_after(guest) == ()
        assert reload(daemon, client, events, 1, original) == "config.reloaded"
        assert daemon.settled_files(files) == files
        events.close()
        assert guest.stderr == ()
        report(
            f"reloads: {RELOADS} in {seconds:.1f} s, beside {frames / float(flipped[2]):.0f} frames"
            f" a second on the {device} device"
        )


def driver_errors_after(guest: Guest) -> tuple[str, ...]:
    """Let the program end, and ask what the guest's driver complained about."""
    guest.start("")
    assert guest.finish().status == 0
    return driver_errors(guest)
