"""Memory, coherent caches and write-combining buffers: what x86 may do, one step at a time.

Whatever the processor may do at any time (evict a line, fetch one on speculation, empty a
write-combining buffer) is a method too: who drives the machine decides when. A word stands for any
part of a line that is written alone, a value for a version of it. Caches are coherent among
themselves (MESI with dirty forwarding): if several hold a line, they hold the same bytes.
Sources: Intel SDM vol. 3, 13.3 and 13.4; vol. 1, 10.4.6.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tests.coherency.model.memory_types import Access, Type

WORDS = 2
"""Words in a line: enough for two parties to write beside each other."""


class Agent(IntEnum):
    """Who has a cache: the guest's CPU, the host's, and the one that snooped DMA goes into."""

    GUEST = 0
    HOST = 1
    IO = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A line in a cache."""

    words: tuple[int, ...]
    dirty: bool


class Machine:
    """`lines` lines of memory, all words of which hold `old`, and in no cache.

    With `one_cache` all agents share one: since caches are coherent this is the same machine, with
    fewer states.
    """

    __slots__ = ("buffers", "caches", "memory")

    def __init__(self, lines: int, old: int, *, one_cache: bool = False) -> None:
        self.memory = [old] * (lines * WORDS)
        self.caches: list[dict[int, Line]] = [{} for _ in range(1 if one_cache else len(Agent))]
        # By agent: what it has written past the caches and has not left its buffers yet, and
        # whether the caches are checked when it does.
        self.buffers: tuple[dict[int, tuple[int, bool]], ...] = ({}, {})

    def clone(self) -> Machine:
        other = Machine.__new__(Machine)
        other.memory = self.memory.copy()
        other.caches = [cache.copy() for cache in self.caches]
        other.buffers = tuple(buffer.copy() for buffer in self.buffers)
        return other

    def holder(self, line: int) -> Line | None:
        """The line as the caches have it: all that do have the same bytes."""
        return next((cache[line] for cache in self.caches if line in cache), None)

    # What a CPU does.

    def load(self, agent: Agent, word: int, access: Access) -> int:
        self.drain(agent, word)
        line, at = divmod(word, WORDS)
        if access.cached:
            self.fill(agent, line)
            return self._cache(agent)[line].words[at]
        if access.checks:
            self._drop(line)
        return self.memory[word]

    def store(self, agent: Agent, word: int, value: int, access: Access) -> None:
        if access.type is Type.WB:
            self.drain(agent, word)
            self._store_cached(agent, word, value)
        elif access.cached:  # WT and WP: past the caches, which keep no old bytes of it
            self.stream(agent, word, value, access)
        elif access.type is Type.WC:
            self.buffers[agent][word] = (value, access.checks)
        else:
            self._store_past(word, value, checks=access.checks)

    def stream(self, agent: Agent, word: int, value: int, access: Access) -> None:
        """A non-temporal store: "if the memory location being written to is present in the cache
        hierarchy, the data in the caches is evicted", and it goes on "with WC semantics"."""
        if access.cached:
            self._drop(word // WORDS)
            self.buffers[agent][word] = (value, True)
        else:
            self.store(agent, word, value, access)

    def fence(self, agent: Agent) -> None:
        """SFENCE, MFENCE, a locked instruction, a VM exit: the agent's buffers are emptied."""
        for word in list(self.buffers[agent]):
            self.drain(agent, word)

    def flush(self, agent: Agent, line: int) -> None:
        """MFENCE, CLFLUSHOPT, MFENCE, through whatever mapping."""
        self.fence(agent)
        self._drop(line)

    # What may happen at any time.

    def drain(self, agent: Agent, word: int) -> None:
        """A word leaves its write-combining buffer; it alone is written."""
        if word in self.buffers[agent]:
            value, checks = self.buffers[agent].pop(word)
            self._store_past(word, value, checks=checks)

    def fill(self, agent: Agent, line: int) -> None:
        """Fetch a line, for a load or on speculation."""
        cache = self._cache(agent)
        if line not in cache:
            held = self.holder(line)
            words = held.words if held else tuple(self.memory[line * WORDS : (line + 1) * WORDS])
            cache[line] = Line(words, dirty=False)

    def evict(self, cache: int, line: int) -> None:
        """A cache lets go of a line; a dirty one is written back whole."""
        gone = self.caches[cache].pop(line, None)
        if gone is not None and gone.dirty:
            self.memory[line * WORDS : (line + 1) * WORDS] = gone.words

    def move(self, line: int, old: int) -> None:
        """The kernel copies a page elsewhere, through its cache; stores on their way arrive first.

        What the memory there held until now is `old`.
        """
        for agent in (Agent.GUEST, Agent.HOST):
            self.fence(agent)
        self.fill(Agent.HOST, line)
        words = self._cache(Agent.HOST)[line].words
        for cache in self.caches:
            cache.pop(line, None)
        self._cache(Agent.HOST)[line] = Line(words, dirty=True)
        self.memory[line * WORDS : (line + 1) * WORDS] = [old] * WORDS

    # What a device does.

    def dma_load(self, word: int, *, snoops: bool) -> int:
        line, at = divmod(word, WORDS)
        held = self.holder(line) if snoops else None
        return held.words[at] if held else self.memory[word]

    def dma_store(self, word: int, value: int, *, snoops: bool, allocates: bool) -> None:
        """A write; one that is snooped may end in memory or, with DDIO, in a cache."""
        if not snoops:
            self.memory[word] = value
        elif allocates:
            self._store_cached(Agent.IO, word, value)
        else:
            self._store_past(word, value, checks=True)

    def _cache(self, agent: Agent) -> dict[int, Line]:
        return self.caches[agent % len(self.caches)]

    def _store_cached(self, agent: Agent, word: int, value: int) -> None:
        line, at = divmod(word, WORDS)
        self.fill(agent, line)
        held = self._cache(agent)[line]
        for cache in self.caches:  # a dirty copy elsewhere has just been forwarded to us
            cache.pop(line, None)
        words = (*held.words[:at], value, *held.words[at + 1 :])
        self._cache(agent)[line] = Line(words, dirty=True)

    def _store_past(self, word: int, value: int, *, checks: bool) -> None:
        if checks:
            self._drop(word // WORDS)
        self.memory[word] = value

    def _drop(self, line: int) -> None:
        for cache in range(len(self.caches)):
            self.evict(cache, line)
