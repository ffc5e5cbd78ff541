"""`metrics.get`: one text for each reader, in pages, whatever is counted meanwhile."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from time import thread_time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.cli.ctl import answers
from vgpud import __version__
from vgpud.control.call import Caller
from vgpud.control.events import Events
from vgpud.control.models import Metrics
from vgpud.control.params import PagedText
from vgpud.daemon.methods import metrics
from vgpud.daemon.methods.metrics import MetricsMethods
from vgpud.daemon.openmetrics import CONTENT_TYPE, DeviceFigures
from vgpud.gpu.counters import Counters

DATAGRAM = 128 << 10


def caller(address: str = "/one", uid: int = 0) -> Caller:
    """Somebody."""
    return Caller(address, 1, uid, 0)


class MetricsStand:
    """The method, over devices that count on at each look, so that no two texts are alike."""

    def __init__(self, devices: int = 1) -> None:
        self.events = Events()
        self.looks = 0
        self._devices = [answers.device(f"gpu{number}") for number in range(devices)]
        self._methods = MetricsMethods(self._figures, self.events, lambda: 2)

    def _figures(self) -> list[DeviceFigures]:
        self.looks += 1
        counted = Counters(fences=10**self.looks)
        return [DeviceFigures(counted, device, {}) for device in self._devices]

    def get(self, offset: int = 0, address: str = "/one", who: Caller | None = None) -> Metrics:
        """An answer."""
        handler = self._methods.handlers()["metrics.get"]
        who = who or caller(address)
        result = asyncio.run(_awaited(handler(PagedText(offset=offset), who)))
        assert isinstance(result, Metrics)
        return result

    def whole(self, address: str = "/one") -> str:
        """All pages from the first."""
        text = ""
        while True:
            page = self.get(len(text), address)
            assert page.offset == len(text)
            assert page.text
            text += page.text
            if len(text) == page.total:
                return text


async def _awaited(result: object) -> object:
    return await result  # type: ignore[misc]


def values(text: str) -> dict[str, list[float]]:
    """All values, by the sample's name."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


def test_a_small_text_is_one_page() -> None:
    stand = MetricsStand()
    stand.events.publish("device.added", "one")
    stand.events.publish("device.added", "another")
    page = stand.get()
    assert (page.offset, page.total, page.content_type) == (0, len(page.text), CONTENT_TYPE)
    found = values(page.text)
    assert found["vgpud_events_total"] == [2]
    assert found["vgpud_subscribers"] == [2]
    assert found["process_open_fds"][0] > 0
    assert f'vgpud_info{{version="{__version__}"}}' in page.text


def test_pages_are_of_one_text_and_fit() -> None:
    stand = MetricsStand(devices=200)
    text = stand.whole()
    assert stand.looks == 1
    assert values(text)["vgpud_fences_total"] == [10.0] * 200
    first = stand.get()
    assert first.text.endswith("\n")
    assert first.total > len(first.text)
    assert DATAGRAM // 4 < len(json.dumps(first.model_dump())) < DATAGRAM
    assert values(stand.whole())["vgpud_fences_total"] == [1000.0] * 200


def test_readers_do_not_get_each_others_text() -> None:
    stand = MetricsStand(devices=200)
    first = stand.get(address="/one")
    assert values(stand.whole("/two"))["vgpud_fences_total"][0] == 100
    text = first.text
    while len(text) < first.total:
        text += stand.get(len(text), "/one").text
    assert values(text)["vgpud_fences_total"] == [10.0] * 200


@pytest.mark.parametrize("offset", [1, 2000])
def test_a_page_begins_with_a_whole_line(offset: int) -> None:
    stand = MetricsStand()
    whole = stand.get().text
    page = stand.get(offset)
    assert 0 <= page.offset <= offset
    assert page.offset == 0 or page.text.startswith(("#", "vgpud_", "process_"))
    assert offset - page.offset < max(map(len, whole.splitlines())) + 1


def test_behind_the_end_there_is_nothing() -> None:
    stand = MetricsStand()
    page = stand.get(1 << 40)
    assert (page.text, page.offset) == ("", page.total)


def test_those_who_never_read_on_do_not_pile_up() -> None:
    stand = MetricsStand(devices=200)
    for number in range(metrics.MAX_READERS + 1):
        stand.get(address=f"/reader{number}")
    assert stand.looks == metrics.MAX_READERS + 1
    stand.get(60_000, "/reader1")  # still kept
    assert stand.looks == metrics.MAX_READERS + 1
    stand.get(60_000, "/reader0")  # gave way to the last
    assert stand.looks == metrics.MAX_READERS + 2


def test_a_user_that_reads_no_text_to_its_end_leaves_room_for_others() -> None:
    stand = MetricsStand(devices=200)
    stand.get(address="/root")
    for uid in (1000, 1001, 1002):
        for number in range(metrics.MAX_READERS + 1):
            stand.get(who=caller(f"/{number}", uid))
    assert len(stand._methods._unread) <= metrics.MAX_READERS
    looks = stand.looks
    stand.get(60_000, "/root")  # still kept
    assert stand.looks == looks
    # The same address of another is another reader.
    stand.get(60_000, who=caller("/root", 1000))
    assert stand.looks == looks + 1


def test_who_observes_one_device_learns_nothing_of_the_daemon() -> None:
    stand = MetricsStand(devices=2)
    stand.events.publish("device.added", "one")
    who = replace(caller(uid=1000), observes=lambda device: device == "gpu1")
    text = stand.get(who=who).text
    assert 'device="gpu1"' in text
    for hidden in ("gpu0", "vgpud_events", "vgpud_subscribers", "process_"):
        assert hidden not in text


def test_other_tasks_run_while_a_text_is_made() -> None:
    stand = MetricsStand(devices=60)

    async def main() -> float:
        handler = stand._methods.handlers()["metrics.get"]
        await _awaited(handler(PagedText(), caller()))  # it imports what it needs
        making = asyncio.ensure_future(_awaited(handler(PagedText(), caller())))
        longest = 0.0
        while not making.done():
            began = thread_time()
            await asyncio.sleep(0)
            longest = max(longest, thread_time() - began)
        return longest

    assert min(asyncio.run(main()) for _ in range(5)) < 0.005
