"""A measurement, by timing, of the memory type that is in force in a guest.

A page that the guest maps write-combining is cached all the same if KVM ignores the guest's PAT,
and then a load from it is as fast as any cache hit. So the guest also times loads that hit the
cache, and loads of lines that were just flushed. If these two do not differ, the machine shows no
caches (its KVM emulates the guest, or it is itself emulated), and nothing can be concluded.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from statistics import median, quantiles
from typing import Final

from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.microvm import boot
from vgpud.microvm.guest_code import CHASE_LINES, GuestFailedError, Program, Samples
from vgpud.microvm.machine import Machine
from vgpud.microvm.slots import SlotWindow
from vgpud.uapi.memslot import SlotFlag

MARGIN: Final = 2.0
"""Two kinds of load differ if the upper quartile of one, times this, is below the lower quartile of
the other. Between a cache and memory the factor is ten and more."""

_WINDOW_SIZE: Final = 64 << 10


class Setup(StrEnum):
    """The way in which KVM is made to honour the guest's PAT."""

    NEITHER = "neither"
    FLAG = "flag"
    QUIRK_DISABLED = "quirk-disabled"


class Verdict(StrEnum):
    """The conclusion from a set-up's numbers."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    EMULATED = "emulated: can't be measured here"
    UNCLEAR = "within the noise"
    UNAVAILABLE = "not available"


@dataclass(frozen=True, slots=True)
class Row:
    """The result of a set-up; `hit`, `miss` and `wc` are median time stamp counts per load.

    They are None if the set-up is not available.
    """

    setup: Setup
    verdict: Verdict
    reason: str
    hit: float | None = None
    miss: float | None = None
    wc: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The results of all set-ups."""

    rows: tuple[Row, ...]


def measure() -> Measurement:
    """Run the measuring guest once in each set-up, a fraction of a second each.

    Raises `HostError` if there is no KVM, and `GuestFailedError` if a guest does not run.
    """
    return Measurement(tuple(_row(setup) for setup in Setup))


def judge(samples: Samples) -> tuple[Verdict, str]:
    """Return the verdict about a run's numbers, and the reason."""
    hit, miss, wc = _spread(samples.hit), _spread(samples.miss), _spread(samples.wc)
    if not _faster(hit, miss):
        if median(samples.miss) < MARGIN * median(samples.hit):
            return Verdict.EMULATED, "a load takes as long after a flush: no caches show"
        return Verdict.UNCLEAR, "loads that hit and loads that miss overlap"
    # The factor between both counts, so the middle is the geometric mean.
    border = sqrt(hit[1] * miss[0])
    if wc[0] > border and _faster(hit, wc):
        return Verdict.HONOURED, "loads through the WC mapping go to memory each time"
    if wc[1] < border and _faster(wc, miss):
        return Verdict.IGNORED, "loads through the WC mapping hit the cache"
    return Verdict.UNCLEAR, "loads through the WC mapping are neither like hits nor like misses"


def _spread(values: Sequence[int]) -> tuple[float, float]:
    """Return the lower and upper quartile, which a few interruptions do not change."""
    first, _, third = quantiles(values, n=4)
    return first, third


def _faster(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return MARGIN * one[1] < other[0]


def _row(setup: Setup) -> Row:
    try:
        samples = _run(setup)
    except HostError as error:
        # NEITHER comes first: if it runs, only the flag or the quirk can be invalid here.
        if setup is Setup.NEITHER or error.errno != errno.EINVAL:
            raise
        return Row(setup, Verdict.UNAVAILABLE, "this kernel refuses it")
    verdict, reason = judge(samples)
    hit, miss, wc = (
        round(median(values) / CHASE_LINES, 1) for values in (samples.hit, samples.miss, samples.wc)
    )
    return Row(setup, verdict, reason, hit, miss, wc)


def _run(setup: Setup) -> Samples:
    with (
        Machine.open(disable_quirk=setup is Setup.QUIRK_DISABLED) as machine,
        memfd.create("microvm-window", _WINDOW_SIZE) as fd,
        ExitStack() as cleanup,
    ):
        flags = SlotFlag.NON_COHERENT_DMA if setup is Setup.FLAG else SlotFlag.NONE
        window = SlotWindow(machine.vm, boot.WINDOW_GPA, _WINDOW_SIZE, flags=flags)
        cleanup.callback(window.close)
        window.map(fd, 0, 0, _WINDOW_SIZE)
        block = boot.boot_block(
            Program.MEASURE,
            window_gpa=boot.WINDOW_GPA,
            window_size=_WINDOW_SIZE,
            width=1,
            height=1,
            rounds=0,
        )
        machine.load(block)
        for event in machine.run():
            if isinstance(event, Samples):
                return event
        raise GuestFailedError("the measuring guest reported no samples")
