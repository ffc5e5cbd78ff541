"""The machine itself: each hazard that plans guard against can happen on it, and nothing worse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coherency.model.machine import WORDS, Agent, Machine
from tests.coherency.model.memory_types import UC, WB, WC, WP, WT, Access, Type

GUEST, HOST, IO = Agent
CACHED, COMBINED, UNCACHED = Access(WB), Access(WC), Access(UC)
SNOOPING = Access(WC, checks=True)
OLD = -1


def machine() -> Machine:
    return Machine(1, OLD)


def test_a_cached_store_is_not_in_memory_until_the_line_leaves() -> None:
    it = machine()
    it.store(GUEST, 0, 7, CACHED)
    assert it.load(HOST, 0, CACHED) == 7
    assert it.dma_load(0, snoops=True) == 7
    assert it.dma_load(0, snoops=False) == OLD
    it.evict(GUEST, 0)
    assert it.memory[0] == 7


def test_a_combined_store_is_not_in_memory_until_the_buffer_is_emptied() -> None:
    it = machine()
    it.store(GUEST, 0, 7, COMBINED)
    assert it.dma_load(0, snoops=True) == OLD
    assert it.load(GUEST, 0, COMBINED) == 7  # its own stores a CPU always sees
    it.store(GUEST, 1, 8, COMBINED)
    it.fence(GUEST)
    assert it.memory == [7, 8]


def test_an_uncached_store_is_in_memory_at_once() -> None:
    it = machine()
    it.store(GUEST, 0, 7, UNCACHED)
    assert it.memory == [7, OLD]


@pytest.mark.parametrize("type_", [WT, WP])
def test_a_store_that_is_written_through_leaves_no_dirty_line_but_loads_are_cached(
    type_: Type,
) -> None:
    it = machine()
    it.store(HOST, 1, 8, CACHED)
    it.store(GUEST, 0, 7, Access(type_))
    it.fence(GUEST)
    assert it.memory == [7, 8]
    assert it.load(GUEST, 0, Access(type_)) == 7
    it.dma_store(0, 9, snoops=False, allocates=False)
    assert it.load(GUEST, 0, Access(type_)) == 7
    it.flush(HOST, 0)
    assert it.load(GUEST, 0, Access(type_)) == 9


def test_a_dirty_line_is_written_over_what_went_past_it() -> None:
    """What becomes of a guest's first stores if the kernel's zeros are still in the cache."""
    it = machine()
    it.store(HOST, 0, 0, CACHED)
    it.store(GUEST, 0, 7, UNCACHED)
    it.evict(HOST, 0)
    assert it.memory[0] == 0


def test_a_page_that_is_zeroed_after_the_flush_is_no_better() -> None:
    """Why pages must be there when a range is handed over, not come at the guest's first touch."""
    it = machine()
    it.flush(HOST, 0)
    it.store(HOST, 0, 0, CACHED)
    it.store(GUEST, 0, 7, UNCACHED)
    assert it.load(HOST, 0, CACHED) == 0


def test_a_store_that_checks_is_not_lost() -> None:
    for access in (SNOOPING, Access(UC, checks=True)):
        it = machine()
        it.store(HOST, 1, 5, CACHED)
        it.store(GUEST, 0, 7, access)
        it.fence(GUEST)
        assert it.memory == [7, 5]
        assert it.holder(0) is None


def test_a_line_fetched_on_speculation_hides_what_dma_wrote() -> None:
    it = machine()
    it.fill(HOST, 0)
    it.dma_store(0, 7, snoops=False, allocates=False)
    assert it.load(HOST, 0, CACHED) == OLD
    it.flush(HOST, 0)
    assert it.load(HOST, 0, CACHED) == 7


def test_a_flush_through_one_mapping_writes_back_what_another_dirtied() -> None:
    it = machine()
    it.store(GUEST, 0, 7, CACHED)
    it.flush(HOST, 0)
    assert it.memory[0] == 7
    assert it.holder(0) is None


def test_a_clean_line_is_dropped_without_a_write() -> None:
    it = machine()
    it.fill(HOST, 0)
    it.dma_store(0, 7, snoops=False, allocates=False)
    it.flush(HOST, 0)
    assert it.memory[0] == 7


def test_part_of_a_line_stored_and_flushed_takes_the_rest_back() -> None:
    """Why a plain store and a flush is no substitute for a non-temporal store."""
    it = machine()
    it.fill(HOST, 0)
    it.store(GUEST, 0, 7, UNCACHED)
    it.store(HOST, 1, 8, CACHED)
    it.flush(HOST, 0)
    assert it.memory == [OLD, 8]


def test_part_of_a_line_streamed_leaves_the_rest() -> None:
    it = machine()
    it.fill(HOST, 0)
    it.store(GUEST, 0, 7, UNCACHED)
    it.stream(HOST, 1, 8, CACHED)
    assert it.memory == [7, OLD]
    it.fence(HOST)
    assert it.memory == [7, 8]


def test_a_streamed_store_writes_back_a_dirty_line_first() -> None:
    it = machine()
    it.store(GUEST, 0, 7, CACHED)
    it.stream(HOST, 1, 8, CACHED)
    it.store(GUEST, 0, 9, CACHED)  # while it is in the buffer
    it.fence(HOST)
    assert it.memory == [9, 8]


def test_snooped_dma_may_end_in_a_cache() -> None:
    it = machine()
    it.dma_store(0, 7, snoops=True, allocates=True)
    assert it.load(HOST, 0, CACHED) == 7
    assert it.load(GUEST, 0, COMBINED) == OLD
    it.dma_store(0, 8, snoops=True, allocates=False)
    assert it.load(GUEST, 0, COMBINED) == 8


def test_snooped_dma_finds_a_line_that_has_gone_stale() -> None:
    it = machine()
    it.fill(HOST, 0)
    it.store(GUEST, 0, 7, UNCACHED)
    assert it.dma_load(0, snoops=True) == OLD
    assert it.dma_load(0, snoops=False) == 7


def test_a_moved_page_is_in_the_cache_only() -> None:
    it = machine()
    it.store(GUEST, 0, 7, COMBINED)
    it.move(0, OLD)
    assert it.memory[0] == OLD
    assert it.load(HOST, 0, CACHED) == 7
    assert it.load(GUEST, 0, COMBINED) == OLD


AGENTS = st.sampled_from(Agent)
CPUS = st.sampled_from((GUEST, HOST))
WORD = st.integers(0, WORDS - 1)
STEP = st.one_of(
    st.tuples(st.just("load"), CPUS, WORD),
    st.tuples(st.just("store"), CPUS, WORD),
    st.tuples(st.just("stream"), CPUS, WORD),
    st.tuples(st.just("fill"), AGENTS),
    st.tuples(st.just("evict"), AGENTS),
    st.tuples(st.just("move")),
    st.tuples(st.just("dma"), WORD, st.booleans()),
)


@given(st.lists(STEP, max_size=40))
def test_caches_and_snooped_dma_are_coherent(steps: list[tuple[object, ...]]) -> None:
    """Among parties that all go through the caches, every load finds the last store; at most one
    cache has a dirty copy, and all copies are the same. So one cache for all is the same machine.
    """
    several, one = Machine(1, 0), Machine(1, 0, one_cache=True)
    latest = [0] * WORDS
    for version, step in enumerate(steps, 1):
        for it in (several, one):
            match step:
                case "load", Agent() as agent, int(word):
                    assert it.load(agent, word, CACHED) == latest[word]
                case ("store" | "stream") as how, Agent() as agent, int(word):
                    getattr(it, how)(agent, word, version, CACHED)
                    it.fence(agent)
                case "fill", Agent() as agent:
                    it.fill(agent, 0)
                case "evict", Agent() as agent:
                    it.evict(agent % len(it.caches), 0)
                case ("move",):
                    it.move(0, OLD)
                case "dma", int(word), bool(allocates):
                    assert it.dma_load(word, snoops=True) == latest[word]
                    it.dma_store(word, version, snoops=True, allocates=allocates)
        match step:
            case (("store" | "stream"), _, int(word)) | ("dma", int(word), _):
                latest[word] = version
        copies = [cache[0] for cache in several.caches if 0 in cache]
        assert len({copy.words for copy in copies}) <= 1
        assert sum(copy.dirty for copy in copies) <= 1
        assert bool(copies) >= bool(one.caches[0])
