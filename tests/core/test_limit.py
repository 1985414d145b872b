# SPDX-License-Identifier: Apache-2.0
"""A limit below the budget: what is above it goes as far as nobody needs it, and the ledger says so all the while."""

import pytest
from core_fake_cuda import FakeCuda
from core_harness import PAGE, Geometry, MakeCache, Memory, Request, ids, ints, ledger, run

from vt_sglang._core import KVCache, OutOfPages

ENOUGH = 10**6  # calls


def test_lowering_it_evicts_and_shrinking_gives_memory_back(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes, slot_tokens=geometry.tokens_in(12))
    total = cache.total_tokens
    tokens = geometry.tokens_in(10)
    pages = geometry.pages_for(tokens)
    for namespace in ("a", "b"):
        run(cache, [5] * tokens, namespace)
    assert cache.usage()["created_pages"] == 2 * pages + 1
    cache.set_limit(pages)
    usage = cache.usage()
    assert (usage["limit_pages"], usage["budget_pages"]) == (pages, 32)
    assert usage["held_pages"] == pages + 1, "the older of the two was evicted"
    assert usage["created_pages"] == 2 * pages + 1, "memory is given back by shrinking alone"
    assert ledger(cache) == cache.total_tokens == total
    assert (cache.available_tokens(), cache.evictable_tokens()) == (0, tokens)
    assert cache.shrink(ENOUGH) == pages
    assert cache.physical_bytes() == (pages + 1) * PAGE
    assert cache.shrink(ENOUGH) == 0
    assert ledger(cache) == total
    assert Request(cache, [5] * tokens, namespace="b").matched == tokens


def test_requests_keep_what_they_have(cache: KVCache) -> None:
    """Nothing can be taken before they end, and what they leave goes too."""
    first, second = Request(cache, ids("a" * 24)), Request(cache, ids("b" * 16), namespace="other")
    cache.set_limit(5)
    assert cache.shrink(ENOUGH) == 0
    assert cache.usage()["created_pages"] == 11
    for it in (first, second):
        it.verify()
    assert (cache.available_tokens(), cache.evictable_tokens(), cache.deliverable_pages()) == (0, 0, 0)
    assert ledger(cache) == cache.total_tokens - 40
    assert not cache.make_room(1)
    with pytest.raises(OutOfPages, match="1 needed, 0 free or evictable"):
        cache.grow(ints(first.slot), ints(25))
    assert cache.make_room(0), "who takes no page goes on"
    cache.grow(ints(first.slot), ints(24))
    first.finish()
    assert cache.usage()["evictable_pages"] == 6
    assert cache.deliverable_pages() == 1
    assert ledger(cache) == cache.total_tokens - 16
    assert cache.shrink(ENOUGH) == 5
    usage = cache.usage()
    assert (usage["created_pages"], usage["free_pages"], usage["tree_tokens"]) == (6, 1, 0)
    second.append(ids("c" * 4))
    second.verify()
    second.abort()
    assert cache.deliverable_pages() == 5


def test_a_page_that_is_needed_waits_for_as_many_evictions_as_it_takes(cache: KVCache) -> None:
    """The request's pages are above the limit until what others recorded is gone."""
    other = Request(cache, ids("o" * 12), namespace="other")
    request = Request(cache, ids("r" * 8))
    cache.set_limit(4)
    other.finish()  # three pages, which are evictable now; with the request's two that is one too many
    assert cache.deliverable_pages() == 2
    request.append(ids("r" * 8))
    request.verify()
    usage = cache.usage()
    assert (usage["held_pages"], usage["tree_tokens"]) == (5, 0)
    assert cache.shrink(ENOUGH) == 1
    request.abort()


def test_growing_again(cache: KVCache) -> None:
    cache.set_limit(1)
    with pytest.raises(OutOfPages, match="2 needed, 1 free"):
        Request(cache, ids("a" * 8))
    cache.set_limit(32)
    assert cache.available_tokens() == cache.total_tokens
    Request(cache, ids("a" * 64)).finish()


@pytest.mark.parametrize("pages", [0, 33, 2**40])
def test_what_is_no_limit_changes_nothing(cache: KVCache, pages: int) -> None:
    cache.set_limit(7)
    with pytest.raises(ValueError, match="the limit must be 1 to 32 pages"):
        cache.set_limit(pages)
    assert cache.usage()["limit_pages"] == 7


def test_no_page_is_created_above_it(cache: KVCache) -> None:
    cache.set_limit(3)
    cache.create_ahead(32)
    assert cache.usage()["created_pages"] == 4
    assert not cache.make_room(4)
    assert cache.make_room(3)


def test_a_shortage_of_memory_is_another_reason(make_cache: MakeCache) -> None:
    """Each is counted by itself: the end of one does not undo the other."""
    cache = make_cache(budget_pages=16, inject_faults=True)
    cache.limit_memory(9)
    cache.create_ahead(16)
    assert cache.usage()["withheld_pages"] == 8
    cache.set_limit(12)
    assert cache.deliverable_pages() == 8
    cache.clear_faults()
    cache.create_ahead(9, retry=True)
    assert cache.usage()["withheld_pages"] == 0
    assert cache.deliverable_pages() == 12
    cache.set_limit(5)
    cache.shrink(ENOUGH)
    cache.limit_memory(6)
    assert cache.deliverable_pages() == 5
    cache.create_ahead(16, retry=True)
    assert cache.counters()["creations_failed"] == 1, "nothing was tried above the limit"
    cache.set_limit(16)
    cache.create_ahead(16)
    assert cache.usage()["withheld_pages"] == 11
    assert cache.deliverable_pages() == 5


def test_a_match_leaves_room_to_grow_under_it(cache: KVCache) -> None:
    run(cache, ids("abcdef"))
    cache.set_limit(3)
    node, matched = cache.match(None, ids("abcdef"), None, 12)
    assert matched == 4, "the tail would have to be copied, and all three pages are needed"
    cache.lock(node)
    slot, *_ = cache.bind(None, node, 12)
    cache.release(slot)
    cache.unlock(node)


def test_shrinking_in_slices(cache: KVCache) -> None:
    """A page costs a call for itself and one for each of its mappings."""
    run(cache, ids("a" * 16))
    for letter in "bcd":
        run(cache, ids("a" * 16 + letter))  # the first extends the slot; all map the four pages
    held = [Request(cache, ids("a" * 16 + letter)) for letter in "xyz"]
    for it in held:
        it.abort()
    cache.set_limit(1)
    created, calls = cache.usage()["created_pages"], cache.counters()["driver_calls"]
    steps = 0
    while cache.usage()["created_pages"] > 2:
        assert cache.shrink(4) > 0
        spent = cache.counters()["driver_calls"] - calls
        assert spent <= 4 + cache.slots, "the last page of a slice may have been mapped by every slot"
        calls += spent
        steps += 1
    assert steps >= created // 4


def test_a_slot_in_flight_is_left_alone(cache: KVCache) -> None:
    request = Request(cache, ids("a" * 16))
    forward = cache.begin_forward(ints(request.slot))
    request.abort()
    cache.set_limit(1)
    mapped = Memory(cache).mapped_pages()
    assert cache.shrink(ENOUGH) == 0
    assert Memory(cache).mapped_pages() == mapped
    cache.complete_forward(forward)
    assert cache.shrink(ENOUGH) == 3


def test_copies_under_way_are_left_alone(fake_cuda: FakeCuda) -> None:
    """A request that ends before the forward that it was bound for: the driver may still be copying its tail."""
    cache = fake_cuda.cache()
    run(cache, ids("abcdef"))
    run(cache, ids("abcdefX"))
    cache.complete_forward(cache.begin_forward(ints()))
    request = Request(cache, ids("abcdefY"), write=False)
    assert request.tail == "copied"
    request.abort()
    cache.evict(32)
    free = cache.usage()["free_pages"]
    given_back = cache.trim(settled=False)
    assert free - given_back == 2, "the copy's source and its destination"
    cache.complete_forward(cache.begin_forward(ints()))
    assert cache.trim(settled=False) == 2
    cache.check()
