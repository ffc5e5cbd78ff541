"""The limit of log lines: for each place in the code and each device, whoever causes them."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from vgpud.daemon import log_limit, rate_limit
from vgpud.daemon.log_limit import UNLIMITED, LogLimit
from vgpud.daemon.logs import LineFormatter
from vgpud.daemon.rate_limit import BURST, INTERVAL


class Lines(logging.Handler):
    """A handler that keeps lines."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter("%(levelname)s %(message)s"))
        self.limit = LogLimit()
        self.addFilter(self.limit)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def report(self) -> None:
        self.limit.report(self.emit)


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> logging.Logger:
    logger = logging.Logger("vgpud.test", logging.DEBUG)
    logger.addHandler(lines)
    return logger


class Clock:
    """A clock that stands still until it is told otherwise."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limit, "monotonic", made)
    return made


def test_a_flood_is_cut_and_counted(clock: Clock, lines: Lines, log: logging.Logger) -> None:
    for number in range(3600):
        log.warning("session ended device=%s: %s", "gpu0", number)
    assert lines.lines == [f"WARNING session ended device=gpu0: {n}" for n in range(BURST)]
    clock.now += INTERVAL
    log.warning("session ended device=%s: %s", "gpu0", "again")
    log.warning("session ended device=%s: %s", "gpu0", "and again")
    [line] = lines.lines[BURST:]
    assert (
        line == f"WARNING session ended device=gpu0: again ({3600 - BURST} more like it not logged)"
    )


def test_a_flood_that_has_ended_is_reported(
    clock: Clock, lines: Lines, log: logging.Logger
) -> None:
    for _ in range(BURST + 5):
        log.info("connected device=%s pid=%d", "gpu0", 7)
        log.error("accept failed: %s", "too many files")
    lines.report()
    assert len(lines.lines) == 2 * BURST
    clock.now += INTERVAL
    lines.report()
    lines.report()
    assert lines.lines[2 * BURST :] == [
        "INFO 5 lines not logged device=gpu0: connected device=%s pid=%d",
        "ERROR 5 lines not logged: accept failed: %s",
    ]


def test_a_device_costs_no_other_its_lines(clock: Clock, lines: Lines, log: logging.Logger) -> None:
    for _ in range(100):
        log.warning("queue stopped device=%s", "gpu0")
    log.warning("queue stopped device=%s", "gpu1")
    log.warning("display closed device=%s", "gpu0")
    assert lines.lines[BURST:] == [
        "WARNING queue stopped device=gpu1",
        "WARNING display closed device=gpu0",
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_text_without_a_template_is_limited_by_its_place(
    clock: Clock, lines: Lines, log: logging.Logger, count: int
) -> None:
    for number in range(100):
        log.warning(f"text {number}" if not count else f"text {number} %s" % "x")
    assert len(lines.lines) == BURST


def test_what_the_operator_causes_is_not_limited(
    clock: Clock, lines: Lines, log: logging.Logger
) -> None:
    for number in range(100):
        log.error("configuration rejected: %s", number, extra=UNLIMITED)
    assert len(lines.lines) == 100


def test_lines_for_debugging_may_be_many(clock: Clock, lines: Lines, log: logging.Logger) -> None:
    for number in range(10_000):
        log.debug("number=%d", number)
    assert len(lines.lines) == BURST * log_limit.DEBUG_FACTOR


def test_the_budgets_are_bounded_and_keep_no_values(
    clock: Clock, lines: Lines, log: logging.Logger
) -> None:
    class Buffer:
        """Something large that a line is about."""

    for number in range(log_limit.MAX_BUDGETS + 10):
        log.info("device=%s", number)
    assert len(lines.limit._budgets) == log_limit.MAX_BUDGETS
    buffer = Buffer()
    found = weakref.ref(buffer)
    gc.disable()
    try:
        for _ in range(BURST + 5):
            try:
                raise ValueError(buffer)
            except ValueError:
                log.exception("failed device=%s: %s", "gpu0", buffer)
        del buffer
        assert found() is None
    finally:
        gc.enable()
