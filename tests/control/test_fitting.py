"""Listings cut to a datagram, and what can't be cut."""

from __future__ import annotations

import json
import os
from typing import ClassVar

import pytest
from pydantic import BaseModel, field_serializer

from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.fitting import INTERNAL_ERROR, MAX_REPLY, Answer, fit
from vgpud.control.models import Metrics, Model, Page, Slot
from vgpud.control.rpc import CallId, RpcError
from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd


def page(count: int, name: str = "gpu0") -> Page[Slot]:
    slot = Slot(
        device=name,
        owner=SlotOwner.AGENT,
        slot=1,
        use=SlotUse.BAR,
        flags=8,
        bar_offset=0,
        guest_phys_addr=1 << 40,
        memory_size=4096,
    )
    return Page[Slot](items=(slot,) * count, offset=5, total=9000)


@pytest.mark.parametrize("call_id", [1, "x" * 30_000, "é" * 5000])
@pytest.mark.parametrize("count", [0, 1, 100, 1000])
def test_a_page_has_as_many_items_as_fit(call_id: CallId, count: int) -> None:
    data = fit([Answer(call_id, page(count))], batch=False).data
    assert len(data) <= MAX_REPLY
    reply = json.loads(data)
    assert reply["id"] == call_id
    result = reply["result"]
    assert (result["offset"], result["total"]) == (5, 9000)
    got = len(result["items"])
    size = len(json.dumps(page(1).model_dump()["items"][0], separators=(",", ":"))) + 1
    assert got == count or len(data) + size > MAX_REPLY
    assert got >= min(1, count)


class Costly(Model):
    """An item of which it is counted how often it is looked at."""

    text: str
    _looks: ClassVar[list[int]] = []

    @field_serializer("text")
    def _look(self, text: str) -> str:
        self._looks.append(1)
        return text


def test_a_batch_of_long_listings_is_no_more_work_than_one() -> None:
    """Else it would hold up all guests for as long."""
    long = Page[Costly](items=(Costly(text="x" * 1000),) * 1000, offset=0, total=1000)
    data = fit([Answer(number, long) for number in range(64)], batch=True).data
    assert len(data) <= MAX_REPLY
    replies = json.loads(data)
    shown = sum(len(reply["result"]["items"]) for reply in replies if "result" in reply)
    assert shown > 40
    assert len(Costly._looks) <= shown + 2 * 64


def test_every_size_around_the_limit() -> None:
    for length in range(1, 400):
        data = fit([Answer(1, page(300, "n" * length))], batch=False).data
        assert len(data) <= MAX_REPLY
        item = len(
            json.dumps(page(1, "n" * length).model_dump()["items"][0], separators=(",", ":"))
        )
        got = len(json.loads(data)["result"]["items"])
        assert got == 300 or len(data) + item + 1 > MAX_REPLY


def test_one_item_that_does_not_fit_is_too_large() -> None:
    reply = json.loads(fit([Answer(1, page(3, "n" * MAX_REPLY))], batch=False).data)
    assert reply["error"]["data"]["kind"] == "too-large"


def test_what_is_no_page_is_too_large() -> None:
    text = Metrics(content_type="t", text="x" * MAX_REPLY, offset=0, total=1)
    reply = json.loads(fit([Answer(1, text)], batch=False).data)
    assert reply["error"]["data"]["kind"] == "too-large"


@pytest.mark.parametrize(
    "values",
    [
        [page(1000), page(1000), INTERNAL_ERROR],
        [INTERNAL_ERROR] * 64,
        [page(10)] * 64,
        [page(100, "é" * 600), page(1), page(2)],
    ],
)
def test_a_batch_shares_one_datagram(values: list[BaseModel | RpcError]) -> None:
    data = fit([Answer(n, value) for n, value in enumerate(values)], batch=True).data
    assert len(data) <= MAX_REPLY
    replies = json.loads(data)
    assert [reply["id"] for reply in replies] == [*range(len(values))]
    for reply in replies:
        assert "result" in reply or reply["error"]["code"] in {-32603, -32000}
    assert "result" in replies[0] or values[0] is INTERNAL_ERROR


def test_a_descriptor_goes_with_its_answer_only() -> None:
    fd = Fd(os.memfd_create("it", os.MFD_CLOEXEC))
    assert fit([Answer(1, page(1), fd)], batch=False).fd is fd
    # Its answer is none any more.
    assert fit([Answer(1, page(1, "n" * MAX_REPLY), fd)], batch=False).fd is None
    assert fd.closed
    fd = Fd(os.memfd_create("it", os.MFD_CLOEXEC))
    assert fit([Answer("é" * 20_000, page(1), fd)], batch=False).fd is None
    assert fd.closed
