"""Paging: no more items are made than a datagram can have."""

from __future__ import annotations

import asyncio

from vgpud.control.fitting import MAX_REPLY, Answer, fit, item_text
from vgpud.control.models import DeviceSummary, Page
from vgpud.control.params import Paged
from vgpud.daemon.methods.lookup import Section, page

NUMBERS = Section(1500, range)


def made(number: int) -> DeviceSummary:
    return DeviceSummary(name=f"{number}", socket="x" * 200, connected=False)


def test_items_are_made_until_a_datagram_is_full() -> None:
    numbers = list[int]()

    def make(number: int) -> DeviceSummary:
        numbers.append(number)
        return made(number)

    found = asyncio.run(page(Page[DeviceSummary], [NUMBERS], Paged(offset=3), make))
    assert found.total == 1500
    sent = fit([Answer(1, found)], batch=False).data.count(b'"socket"')
    assert numbers == [*range(3, 3 + len(numbers))]
    assert sent <= len(numbers) <= sent + 5
    assert len(numbers) < MAX_REPLY // len(item_text(made(1))) + 2


def test_an_item_that_is_too_long_is_there_all_the_same() -> None:
    def long(number: int) -> DeviceSummary:
        return DeviceSummary(name="x" * MAX_REPLY, socket=None, connected=False)

    found = asyncio.run(page(Page[DeviceSummary], [NUMBERS], Paged(), long))
    assert len(found.items) == 1


def test_other_tasks_run_meanwhile() -> None:
    async def main() -> int:
        listing = asyncio.ensure_future(page(Page[DeviceSummary], [NUMBERS], Paged(), made))
        rounds = 0
        while not listing.done():
            rounds += 1
            await asyncio.sleep(0)
        return rounds

    assert asyncio.run(main()) > 2
