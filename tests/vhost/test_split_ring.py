"""The device's side of a split ring, against a driver in plain Python, in any order."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vhost.ring_model import TURN, Buffers, ModelDriver, Ram, push
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC, Chain, SplitRing

BOTH = F_EVENT_IDX | F_INDIRECT_DESC
SIZES = st.sampled_from([1, 2, 4, 16])


@dataclass(frozen=True)
class Expected:
    index: int
    head: int
    readable: Buffers
    writable: Buffers


class Rings(RuleBasedStateMachine):
    """Any sequence of what a driver and a device may do: neither ever disagrees with the model."""

    @initialize(
        num=SIZES,
        base=st.sampled_from([0, 1, TURN // 2, TURN - 3, TURN - 1]),
        event_idx=st.booleans(),
    )
    def start(self, num: int, base: int, event_idx: bool) -> None:
        self.ram = Ram(num)
        self.driver = ModelDriver(self.ram, base=base, event_idx=event_idx)
        self.event_idx = event_idx
        self.written: list[tuple[int, int]] = []
        features = BOTH if event_idx else F_INDIRECT_DESC
        self.ring = SplitRing(
            self.ram.views(), self.ram, base=base, features=features, log_used=self._log
        )
        self.waiting: list[Expected] = []
        self.popped: list[Expected] = []
        self.pushed: list[tuple[int, int]] = []
        self.unsignalled: set[int] = set()
        self.used_idx = self.next_avail = base
        self.seen = self.ram.used_ring()

    def _log(self, offset: int, length: int) -> None:
        self.written.append((offset, length))

    # The driver

    @precondition(lambda self: self.driver.free)
    @rule(data=st.data(), readable=st.integers(0, 4), writable=st.integers(0, 4))
    def submit(self, data: st.DataObject, readable: int, writable: int) -> None:
        kinds = [False] * readable + [True] * writable or [True]
        places = st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
        buffers = [(*data.draw(places), writable) for writable in kinds]
        room = len(self.driver.free)
        # Wholly direct, if there is room, else in a table, as all drivers do.
        wholly = len(buffers) <= room and data.draw(st.booleans())
        head = self.driver.submit(buffers, len(buffers) if wholly else 0)
        self.waiting.append(
            Expected(
                self.driver.avail_idx,
                head,
                tuple((addr, length) for addr, length, writable in buffers if not writable),
                tuple((addr, length) for addr, length, writable in buffers if writable),
            )
        )

    @rule(event=st.integers(-3, 3), flags=st.integers(0, 1))
    def ask_for_interrupts(self, event: int, flags: int) -> None:
        self.ram.store(self.ram.used_event, self.used_idx + event)
        self.ram.store(self.ram.avail, flags)

    @rule()
    def collect(self) -> None:
        assert self.driver.collect() == self.pushed
        self.pushed.clear()

    # The device

    @rule()
    def pop(self) -> None:
        chain = self.ring.pop()
        if not self.waiting:
            assert chain is None
            return
        expected = self.waiting.pop(0)
        assert chain == Chain(expected.head, expected.readable, expected.writable)
        self.popped.append(expected)
        self.next_avail = (self.next_avail + 1) % TURN

    @precondition(lambda self: self.popped and self.popped[-1].index == self.next_avail)
    @rule()
    def put_back(self) -> None:
        last = self.popped.pop()
        self.ring.put_back([last.head])
        self.waiting.insert(0, last)
        self.next_avail = (self.next_avail - 1) % TURN

    @precondition(lambda self: self.popped)
    @rule(data=st.data(), written=st.integers(0, (1 << 32) - 1))
    def push(self, data: st.DataObject, written: int) -> None:
        which = data.draw(st.integers(0, len(self.popped) - 1))  # in any order
        head = self.popped.pop(which).head
        push(self.ring, head, written)
        self.pushed.append((head, written))
        self.unsignalled.add(self.used_idx)
        self.used_idx = (self.used_idx + 1) % TURN

    @rule()
    def notify(self) -> None:
        fences = self.ram.fences
        wanted = self.ring.should_notify()
        if self.event_idx:
            expected = self.ram.load(self.ram.used_event) in self.unsignalled
        else:
            expected = bool(self.unsignalled) and not self.ram.load(self.ram.avail) & 1
        assert wanted == expected
        assert not self.unsignalled or self.ram.fences > fences
        self.unsignalled.clear()
        assert not self.ring.should_notify()

    @rule()
    def sleep(self) -> None:
        """With kicks enabled and nothing left, whatever comes next is kicked for."""
        self.driver.wants_kick()
        fences = self.ram.fences
        left = self.ring.enable_notifications()
        assert self.ram.fences > fences
        assert left == bool(self.waiting)
        if not left and self.driver.free:
            self.submit_one()
            assert self.driver.wants_kick()

    @precondition(lambda self: self.driver.free)
    @rule()
    def drain_quietly(self) -> None:
        """With kicks disabled none are asked for, but with EVENT_IDX once more per `sleep`."""
        self.ring.disable_notifications()
        crossed = self.driver.avail_idx == self.ram.load(self.ram.avail_event)
        self.driver.wants_kick()
        self.submit_one()
        assert self.driver.wants_kick() == (self.event_idx and crossed)

    @rule()
    def move(self) -> None:
        self.ring.move(self.ram.move(), self.ram, log_used=self._log)

    def submit_one(self) -> None:
        head = self.driver.submit([(7, 8, False)], 1)
        self.waiting.append(Expected(self.driver.avail_idx, head, ((7, 8),), ()))

    # Always

    @invariant()
    def the_index_is_right(self) -> None:
        if hasattr(self, "ring"):
            assert self.ring.indices.next_avail == self.next_avail

    @invariant()
    def every_store_into_the_used_ring_was_logged(self) -> None:
        if not hasattr(self, "ring"):
            return
        now = self.ram.used_ring()
        logged = {offset + i for offset, length in self.written for i in range(length)}
        assert logged <= set(range(len(now)))
        changed = {i for i, pair in enumerate(zip(self.seen, now, strict=True)) if len({*pair}) > 1}
        assert changed <= logged
        self.seen = now
        self.written.clear()


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
