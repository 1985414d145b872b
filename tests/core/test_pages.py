# SPDX-License-Identifier: Apache-2.0
"""Physical pages: created on demand, held, freed, taken again; the padding page; the budget."""

import numpy as np
import pytest
from core_harness import PAGE, Geometry, MakeCache, Memory, Request, counter_changes, ids, ints, run

from vt_sglang._core import KVCache, OutOfPages


def test_pages_come_on_demand(cache: KVCache) -> None:
    assert cache.usage()["created_pages"] == 1, "the padding page"
    request = Request(cache, ids("abcde"))
    assert cache.usage()["created_pages"] == 3
    assert cache.physical_bytes() == 3 * PAGE
    request.abort()
    usage = cache.usage()
    assert (usage["created_pages"], usage["free_pages"], usage["held_pages"]) == (3, 2, 1)


def test_a_slot_is_backed_exactly_as_far_as_its_tokens_reach(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes)
    for tokens in range(1, 12):
        request = Request(cache, ids("x" * tokens), namespace=str(tokens))
        assert len(cache.slot_pages(request.slot)) == geometry.pages_for(tokens)
        request.verify()
        request.abort()


def test_free_pages_are_taken_before_new_ones(cache: KVCache) -> None:
    Request(cache, ids("abcdefgh")).abort()
    before = cache.counters()
    request = Request(cache, ids("ijklmnop"))
    assert counter_changes(cache, before) == {"binds": 1, "pages_reused": 2}, "and the slot mapped them already"
    request.abort()


def test_the_page_longest_free_is_taken_first(cache: KVCache) -> None:
    """So that mappings of pages freed a moment ago are still worth something."""
    first, second, third = (Request(cache, ids("abcd")) for _ in range(3))
    freed = cache.slot_pages(first.slot) + cache.slot_pages(second.slot)
    first.abort()
    second.abort()
    third.append(ids("efghijkl"))  # its slot maps neither
    assert cache.slot_pages(third.slot)[1:] == freed
    third.verify()
    third.abort()


def test_the_padding_slot_is_always_backed(make_cache: MakeCache, geometry: Geometry) -> None:
    """Kernels read and write token 0 of slot 0 at any time, and disturb nobody; a token larger than a page too."""
    cache = make_cache(geometry.token_bytes, budget_pages=8)
    memory = Memory(cache)
    assert memory.accessible(0, 1)
    request = Request(cache, ids("abc"))
    memory.tokens(0, 0, 1)[:] = np.uint64(2**64 - 1)
    request.verify()
    request.finish()
    cache.evict(100)
    cache.trim()
    cache.clear()
    assert memory.accessible(0, 1)
    memory.tokens(0, 0, 1)[:] = np.uint64(1)
    usage = cache.usage()
    assert (usage["budget_pages"], usage["created_pages"], usage["held_pages"]) == (8, 1, 1)


def test_the_whole_budget_can_be_taken_and_no_more(make_cache: MakeCache, geometry: Geometry) -> None:
    budget = 8
    cache = make_cache(geometry.token_bytes, budget_pages=budget, slots=12)
    tokens = geometry.tokens_in(budget)
    assert cache.total_tokens == tokens
    request = Request(cache, [1] * min(tokens, cache.slot_tokens))
    others = []
    while cache.usage()["held_pages"] <= budget - geometry.pages_for(1):
        others.append(Request(cache, [2], namespace=str(len(others))))
    needed, left = geometry.pages_for(2), budget + 1 - cache.usage()["held_pages"]
    if needed > left:
        with pytest.raises(OutOfPages, match=f"{needed} needed, {left} free or evictable"):
            Request(cache, [3, 3])
    for it in (request, *others):
        it.verify()
        it.abort()
    assert cache.available_tokens() == tokens


def test_growth_takes_pages_only_at_borders(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes)
    request = Request(cache, ids("a"))
    for length in range(2, 12):
        needed = cache.pages_to_grow(ints(request.slot), ints(length))
        held = cache.usage()["held_pages"]
        assert needed == geometry.pages_for(length) - geometry.pages_for(length - 1)
        request.append(ids("b"))
        assert cache.usage()["held_pages"] == held + needed
    request.verify()
    assert cache.pages_to_grow(ints(request.slot), ints(1)) == 0
    request.abort()


def test_a_batch_grows_as_one(make_cache: MakeCache) -> None:
    """Either every request of the batch gets its pages or none does."""
    cache = make_cache(budget_pages=5)
    a, b = Request(cache, ids("abcd")), Request(cache, ids("efgh"))
    slots = ints(a.slot, b.slot)
    before = cache.usage()
    with pytest.raises(OutOfPages, match="4 needed, 3 free"):
        cache.grow(slots, ints(12, 12))
    assert cache.usage() == before
    cache.grow(slots, ints(12, 8))
    assert (len(cache.slot_pages(a.slot)), len(cache.slot_pages(b.slot))) == (3, 2)
    a.verify()
    b.verify()
    a.abort()
    b.abort()


def test_growth_evicts_what_it_needs(make_cache: MakeCache) -> None:
    cache = make_cache(budget_pages=4)
    run(cache, ids("abcdefgh"))
    request = Request(cache, ids("xy"))
    request.append(ids("z" * 10))
    request.verify()
    assert cache.usage()["tree_tokens"] < 8
    request.abort()


def test_deliverable_pages_are_the_available_and_the_evictable(cache: KVCache) -> None:
    assert cache.deliverable_pages() == 32
    run(cache, ids("abcdefgh"))
    assert cache.deliverable_pages() == 32
    request = Request(cache, ids("abcdefgh"), room=4)
    assert cache.deliverable_pages() == 29
    request.abort()


def test_make_room_is_all_or_nothing(make_cache: MakeCache) -> None:
    cache = make_cache(budget_pages=8)
    run(cache, ids("abcdefgh"))
    request = Request(cache, ids("x" * 16))
    before = cache.usage()
    assert not cache.make_room(5)
    assert cache.usage() == before
    assert cache.make_room(2)
    assert cache.usage() == before | {"created_pages": 9, "free_pages": 2}, "nothing had to be evicted"
    assert cache.make_room(4)
    assert cache.usage()["tree_tokens"] == 0
    request.abort()
