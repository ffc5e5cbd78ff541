"""The watch on GPUs: a monitor that says what the test wants, over recorded /sys trees."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.memory.gpu_trees import erase, record
from vgpud.control.events import Events
from vgpud.control.models import Event
from vgpud.daemon.gpu_watch import SETTLE, GpuWatch, Monitor
from vgpud.memory.render_nodes import HostGpu, RenderNodes

INTEL = "pci0000:00/0000:00:02.0"
CARD = "pci0000:00/0000:03:00.0"


@dataclass(frozen=True)
class Said:
    action: str | None
    sys_name: str


class FakeMonitor:
    """A `Monitor` that returns the events that a test gives it, over a descriptor of its own."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._queue: deque[Said | OSError] = deque()

    def say(self, *said: Said | OSError) -> None:
        self._queue.extend(said)
        self._there.send(b"!" * len(said))

    def fileno(self) -> int:
        return self._here.fileno()

    def poll(self, timeout: float | None = None) -> Said | None:
        assert timeout == 0, "nobody on the loop may wait"
        if not self._queue:
            return None
        self._here.recv(1)
        said = self._queue.popleft()
        if isinstance(said, OSError):
            raise said
        return said

    def close(self) -> None:
        self._here.close()
        self._there.close()


class WatchStand:
    """A watch that runs, and the events that it has published."""

    def __init__(
        self, root: Path, users: Callable[[HostGpu], Sequence[str]] = lambda _: ()
    ) -> None:
        self.monitor = FakeMonitor()
        self.events: list[Event] = []
        events = Events()
        events.listen(self._take)
        self._more = asyncio.Event()
        self.nodes = RenderNodes(root)
        self.watch = GpuWatch(events, nodes=self.nodes, users=users, monitor=lambda: self.monitor)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self._more.set()

    async def told(self, count: int) -> list[Event]:
        """The events up to now, as soon as there are so many; more are an error."""
        async with asyncio.timeout(10):
            while len(self.events) < count:
                self._more.clear()
                await self._more.wait()
        await asyncio.sleep(1.5 * SETTLE)
        assert len(self.events) == count
        return self.events


@asynccontextmanager
async def running(stand: WatchStand) -> AsyncIterator[WatchStand]:
    task = asyncio.create_task(stand.watch.run())
    await asyncio.sleep(0)
    yield stand
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    stand.monitor.close()


def run(stand: WatchStand, work: Callable[[WatchStand], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(stand):
            await work(stand)

    asyncio.run(main())


def test_a_gpu_comes(tmp_path: Path) -> None:
    async def work(stand: WatchStand) -> None:
        # Its nodes come one after the other; it is one GPU, and one event.
        record(tmp_path, CARD, "xe", "card0", "renderD128")
        stand.monitor.say(Said("add", "renderD128"), Said("add", "card0-HDMI-A-1"))
        stand.monitor.say(Said("add", "card0"))
        [event] = await stand.told(1)
        assert event.kind == "gpu.added"
        assert event.device is None
        assert event.data == {
            "gpu": "0000:03:00.0",
            "driver": "xe",
            "nodes": ["/dev/dri/card0", "/dev/dri/renderD128"],
        }
        assert stand.nodes.find("/dev/dri/card0") is not None

    run(WatchStand(tmp_path), work)


def test_a_gpu_goes_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record(tmp_path, INTEL, "i915", "card0", "renderD128")
    record(tmp_path, CARD, "vgem", "card1", "renderD129")

    def users(gpu: HostGpu) -> Sequence[str]:
        return ["gpu0", "gpu1"] if "/dev/dri/card1" in gpu.nodes else []

    async def work(stand: WatchStand) -> None:
        gpu = stand.nodes.find("/dev/dri/card1")
        assert gpu is not None
        erase(tmp_path, CARD)
        stand.monitor.say(Said("remove", "card1"), Said("remove", "renderD129"))
        events = await stand.told(2)
        assert [(event.kind, event.device) for event in events] == [
            ("gpu.removed", "gpu0"),
            ("gpu.removed", "gpu1"),
        ]
        assert "0000:03:00.0 (vgem, /dev/dri/card1" in events[0].message
        assert gpu not in stand.nodes
        record(tmp_path, CARD, "vgem", "card1", "renderD129")
        stand.monitor.say(Said("add", "card1"), Said("add", "renderD129"))
        events = await stand.told(4)
        assert [event.kind for event in events[2:]] == ["gpu.added"] * 2
        assert gpu not in stand.nodes

    with caplog.at_level(logging.INFO):
        run(WatchStand(tmp_path, users), work)
    warned = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [line.partition(":")[0] for line in warned] == [
        "GPU removed device=gpu0",
        "GPU removed device=gpu1",
    ]


def test_one_that_was_away_between_two_looks(tmp_path: Path) -> None:
    record(tmp_path, CARD, "vgem", "card0", "renderD128")

    async def work(stand: WatchStand) -> None:
        [before] = stand.nodes.gpus
        stand.monitor.say(Said("remove", "card0"), Said("add", "card0"))
        events = await stand.told(2)
        assert [event.kind for event in events] == ["gpu.removed", "gpu.added"]
        assert before not in stand.nodes

    run(WatchStand(tmp_path), work)


def test_what_came_before_the_monitor(tmp_path: Path) -> None:
    stand = WatchStand(tmp_path)
    record(tmp_path, CARD, "xe", "card0", "renderD128")

    async def work(stand: WatchStand) -> None:
        assert [event.kind for event in await stand.told(1)] == ["gpu.added"]

    run(stand, work)


def test_what_was_missed_is_seen_all_the_same(tmp_path: Path) -> None:
    record(tmp_path, CARD, "xe", "card0", "renderD128")

    async def work(stand: WatchStand) -> None:
        erase(tmp_path, CARD)
        stand.monitor.say(OSError(errno.ENOBUFS, "No buffer space available"))
        assert [event.kind for event in await stand.told(1)] == ["gpu.removed"]

    run(WatchStand(tmp_path), work)


def test_what_is_none_of_our_business(tmp_path: Path) -> None:
    record(tmp_path, CARD, "xe", "card0", "renderD128")

    async def work(stand: WatchStand) -> None:
        stand.monitor.say(Said("change", "card0"), Said("remove", "card0-HDMI-A-1"))
        stand.monitor.say(Said(None, "card0"))
        await stand.told(0)
        await asyncio.sleep(1.5 * SETTLE)
        assert stand.events == []

    run(WatchStand(tmp_path), work)


@pytest.mark.parametrize(
    "error", [ImportError("No library named udev"), OSError(errno.EAFNOSUPPORT, "not here")]
)
def test_without_udev_it_says_so_once_and_leaves_it_at_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail() -> Monitor:
        raise error

    record(tmp_path, CARD, "xe", "card0", "renderD128")
    events = Events()
    watch = GpuWatch(events, nodes=RenderNodes(tmp_path), monitor=fail)
    with caplog.at_level(logging.INFO):
        asyncio.run(watch.run())
    [line] = [entry.getMessage() for entry in caplog.records]
    assert line.startswith("GPUs are not watched, only the present ones (1) are used: ")
    assert str(error) in line
    assert len(watch.nodes.gpus) == 1
    assert events.sequence == 0
