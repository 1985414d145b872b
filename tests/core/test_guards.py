# SPDX-License-Identifier: Apache-2.0
"""What lies behind a sequence can be read where a kernel reads in whole tiles, and disturbs nobody."""

import numpy as np
import pytest
from core_fake_cuda import FakeCuda
from core_harness import PAGE, Geometry, MakeCache, Memory, Request, counter_changes, ids, ints

from vt_sglang._core import DriverError, SlotsBusy


def test_a_bind_and_a_growth_map_what_they_are_asked_for(make_cache: MakeCache) -> None:
    """The padding page, as often as need be, until real pages take its place; never past the slot's end."""
    tokens_a_page = 4
    cache = make_cache(PAGE // tokens_a_page, slots=4, slot_tokens=40)
    memory = Memory(cache)
    slot, *_ = cache.bind(None, 0, 3, 10)
    assert memory.accessible(slot, 16)
    assert not memory.accessible(slot, 17)
    assert cache.counters()["guards_mapped"] == 3
    padding = memory.mapped_pages()[0, 0]
    assert [memory.mapped_pages()[slot, index] for index in (1, 2, 3)] == [padding] * 3

    before = cache.counters()
    cache.grow(ints(slot), ints(9), 10)
    assert memory.accessible(slot, 20)
    assert len({memory.mapped_pages()[slot, index] for index in range(4)}) == 4, "two of three guards gave way"
    assert counter_changes(cache, before)["guards_mapped"] == 1
    cache.grow(ints(slot), ints(9), 10)
    cache.grow(ints(slot), ints(10))
    assert counter_changes(cache, before)["guards_mapped"] == 1, "once is enough"
    cache.grow(ints(slot), ints(37), 10**15)
    assert memory.accessible(slot, 40)
    cache.check()


def test_stale_mappings_serve(make_cache: MakeCache, geometry: Geometry) -> None:
    """A slot that maps what an earlier request left behind needs nothing more."""
    cache = make_cache(geometry.token_bytes, slots=2, budget_pages=100)
    long = Request(cache, ids("x" * 60))
    long.abort()
    before = cache.counters()
    slot, *_ = cache.bind(None, 0, 1, 59)
    assert Memory(cache).accessible(slot, 60)
    assert "guards_mapped" not in counter_changes(cache, before)
    cache.release(slot)


def test_guards_are_not_counted_as_memory(make_cache: MakeCache) -> None:
    cache = make_cache(1024, budget_pages=4, slots=6)
    slots = [cache.bind(None, 0, 4, 40)[0] for _ in range(4)]
    assert cache.available_tokens() == 0
    assert cache.usage()["created_pages"] == 5
    for slot in slots:
        cache.release(slot)
    cache.check()
    cache.trim()
    assert cache.usage()["created_pages"] == 1
    cache.check()


def test_a_failed_guard_undoes_the_bind(make_cache: MakeCache) -> None:
    cache = make_cache(1024, slots=3, inject_faults=True)
    usage = cache.usage()["live_slots"], cache.usage()["held_pages"]
    cache.inject_fault("map")
    with pytest.raises(DriverError):
        cache.bind(None, 0, 4, 8)
    assert (cache.usage()["live_slots"], cache.usage()["held_pages"]) == usage
    cache.check()
    cache.bind(None, 0, 4, 8)


def test_new_pages_are_zero(fake_cuda: FakeCuda) -> None:
    """The fake driver hands out memory full of garbage, as a real one may; and a page that could not be cleared at
    first is cleared before it is used."""
    cache = fake_cuda.cache(1024, slots=3)
    memory = Memory(cache)
    fake_cuda.fail("cuMemsetD8Async")
    with pytest.raises(DriverError, match="cuMemsetD8Async"):
        cache.bind(None, 0, 9)
    slot, *_ = cache.bind(None, 0, 9, 30)
    assert not memory.tokens(slot, 0, 12).any()
    assert not memory.tokens(0, 0, 1).any()
    cache.grow(ints(slot), ints(30))
    assert not memory.tokens(slot, 0, 32).any()
    memory.tokens(slot, 0, 30)[:] = np.uint64(7)
    cache.release(slot)
    fake_cuda.reset()
    cache.bind(None, 0, 30)
    assert fake_cuda.calls("cuMemsetD8Async") == 0, "only new ones"


def test_what_a_forward_may_be_reading_is_not_replaced(make_cache: MakeCache) -> None:
    """Neither a guard nor a stale page, until the forward is completed; where nothing is mapped, growth goes on."""
    cache = make_cache(1024, slots=4, slot_tokens=60)
    slot, *_ = cache.bind(None, 0, 3, 8)
    other, *_ = cache.bind(None, 0, 3)
    pages = cache.slot_pages(slot)
    first = cache.begin_forward(ints(slot, other), True)
    cache.begin_forward(ints(slot, other))
    usage = cache.usage()
    with pytest.raises(SlotsBusy, match="complete forward 1 first"):
        cache.grow(ints(other, slot), ints(5, 5), 8)
    assert {**cache.usage(), "free_pages": 0, "created_pages": 0} == {**usage, "free_pages": 0, "created_pages": 0}
    assert cache.slot_pages(slot) == pages
    cache.check()
    cache.grow(ints(slot), ints(4), 8)
    cache.grow(ints(other), ints(5), 8)
    cache.complete_forward(first)
    cache.grow(ints(slot), ints(5), 8)
    cache.begin_forward(ints(slot))
    cache.grow(ints(slot), ints(9), 8)


def test_trim_leaves_what_a_forward_may_be_reading(make_cache: MakeCache) -> None:
    cache = make_cache(1024, slots=2, slot_tokens=60)
    Request(cache, ids("x" * 40)).abort()
    slot, *_ = cache.bind(None, 0, 1, 20)
    forward = cache.begin_forward(ints(slot), True)
    cache.trim()
    assert Memory(cache).accessible(slot, 21)
    cache.complete_forward(forward)
    assert cache.trim() > 0
    cache.check()
