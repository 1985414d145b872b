# SPDX-License-Identifier: Apache-2.0
"""Eviction: least recently used leaf first, never what is locked, in time that depends on what is evicted."""

import time

import pytest
from core_harness import Geometry, MakeCache, Request, ids, run

from vt_sglang._core import KVCache


def record_of_pages(cache: KVCache, pages: int, namespace: str | None = None) -> None:
    """A sequence of so many whole pages; its length tells it from the others when it is evicted."""
    run(cache, ids(chr(ord("A") + pages) * 4 * pages), namespace)


def touch(cache: KVCache, pages: int) -> None:
    assert cache.match(None, ids(chr(ord("A") + pages) * 4 * pages))[1] == 4 * pages


def evict_one_by_one(cache: KVCache) -> list[int]:
    """Evicts all, and returns how many pages each eviction's tokens filled."""
    order = []
    while tokens := cache.evict(1):
        order.append(tokens // 4)
    return order


def test_the_least_recently_used_goes_first(cache: KVCache) -> None:
    for pages in (1, 2, 3, 4, 5):
        record_of_pages(cache, pages)
    assert evict_one_by_one(cache) == [1, 2, 3, 4, 5]


def test_a_match_counts_as_use(cache: KVCache) -> None:
    for pages in (1, 2, 3, 4, 5):
        record_of_pages(cache, pages)
    touch(cache, 1)
    touch(cache, 3)
    assert evict_one_by_one(cache) == [2, 4, 5, 1, 3]


def test_recording_again_counts_as_use(cache: KVCache) -> None:
    for pages in (1, 2, 3):
        record_of_pages(cache, pages)
    record_of_pages(cache, 1)
    assert evict_one_by_one(cache) == [2, 3, 1]


def test_the_end_of_a_lock_counts_as_use(cache: KVCache) -> None:
    for pages in (1, 2, 3):
        record_of_pages(cache, pages)
    node, _ = cache.match(None, ids("BBBB"))
    cache.lock(node)
    touch(cache, 2)
    touch(cache, 3)
    cache.unlock(node)
    assert evict_one_by_one(cache) == [2, 3, 1]


def test_leaves_go_before_their_parents(cache: KVCache) -> None:
    run(cache, ids("aaaa"))
    run(cache, ids("aaaabbbb"))
    run(cache, ids("aaaabbbbcccc"))
    for left in (8, 4, 0):
        assert cache.evict(1) == 4
        cache.check()
        assert cache.usage()["tree_tokens"] == left


def test_a_touched_path_survives_as_a_whole(cache: KVCache) -> None:
    """Its ancestors are as recent as its end, though siblings were recorded later."""
    run(cache, ids("aaaabbbb"))
    run(cache, ids("aaaacccc"))
    run(cache, ids("xxxx"))
    assert cache.match(None, ids("aaaabbbb"))[1] == 8
    assert [cache.evict(1), cache.evict(1)] == [4, 4]
    assert cache.match(None, ids("aaaabbbb"))[1] == 8
    assert cache.match(None, ids("xxxx"))[1] == 0


def test_half_a_node_is_older_than_the_touched_half(cache: KVCache) -> None:
    """A match of part of a sequence makes that part recent and leaves the rest as it was."""
    run(cache, ids("aaaabbbb"))
    run(cache, ids("xxxxxxxx"))
    assert cache.match(None, ids("aaaa"))[1] == 4
    assert cache.evict(1) == 4, "bbbb"
    assert cache.evict(1) == 8, "x"
    assert cache.evict(1) == 4, "aaaa"


@pytest.mark.parametrize("locked", [0, 1, 2])
def test_what_is_locked_stays(cache: KVCache, locked: int) -> None:
    texts = ["aaaabbbb", "aaaacccc", "xxxx"]
    for text in texts:
        run(cache, ids(text))
    node, length = cache.match(None, ids(texts[locked]))
    cache.lock(node)
    cache.evict(100)
    assert cache.usage()["tree_tokens"] == length
    assert cache.usage()["evictable_pages"] == 0
    assert cache.match(None, ids(texts[locked])) == (node, length)
    cache.unlock(node)
    assert cache.evict(100) == length


def test_a_live_request_keeps_its_prefix(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    prefix = "p" * geometry.tokens_past(1)
    run(cache, ids(prefix))
    request = Request(cache, ids(prefix + "q"))
    cache.evict(1000)
    request.verify()
    assert cache.match(None, ids(prefix))[1] == len(prefix)
    request.abort()
    assert cache.evict(1000) == len(prefix)


def test_evicting_stops_when_enough_is_free(cache: KVCache) -> None:
    for pages in (1, 2, 3, 4):
        record_of_pages(cache, pages)
    free = cache.usage()["held_pages"]
    assert cache.evict(2) == 12, "one page and then two"
    assert cache.usage()["held_pages"] == free - 3
    assert cache.evict(0) == 0


@pytest.mark.parametrize("wanted", [0, 1, 5, 30, 10_000])
def test_evicting_tokens_makes_them_available(make_cache: MakeCache, geometry: Geometry, wanted: int) -> None:
    """As many as were asked for, in whole pages, and not a leaf more; or all there is."""
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    for letter in "abcdefgh":
        run(cache, ids(letter * geometry.tokens_past(1)))
    before, evictable = cache.available_tokens(), cache.evictable_tokens()
    target = before + min(wanted, evictable)
    leaves = 0
    twin = make_cache(geometry.token_bytes, budget_pages=64)
    for letter in "abcdefgh":
        run(twin, ids(letter * geometry.tokens_past(1)))
    while twin.available_tokens() < target:
        twin.evict(1)
        leaves += 1
    assert cache.evict_tokens(wanted) == leaves * geometry.tokens_past(1)
    assert cache.available_tokens() == twin.available_tokens()


def test_shared_pages_become_free_with_their_last_holder(cache: KVCache) -> None:
    """A leaf whose page its parent holds too frees nothing, and more is evicted until a page is free."""
    run(cache, ids("ab"))
    run(cache, ids("abc"))
    assert cache.usage()["evictable_pages"] == 1
    assert cache.evict(1) == 3
    assert cache.usage()["evictable_pages"] == 0


def test_eviction_frees_exactly_the_evictable_pages(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes, budget_pages=100)
    for text in ("abcdefgh", "abcdxyz", "abcde", "abcdefghijkl", "q"):
        run(cache, ids(text))
    request = Request(cache, ids("abcdefghX"))
    usage = cache.usage()
    cache.evict(10**6)
    after = cache.usage()
    assert after["held_pages"] == usage["held_pages"] - usage["evictable_pages"]
    assert after["evictable_pages"] == 0
    request.verify()
    request.abort()


def test_an_evicted_slot_still_serves_what_is_left_of_its_path(cache: KVCache) -> None:
    """A slot whose leaf is evicted belongs to the leaf's parent: the next turn from there maps nothing."""
    run(cache, ids("aaaa"))
    leaf = run(cache, ids("aaaabbbb"))
    node, _ = cache.match(None, ids("aaaa"))
    cache.lock(node)
    cache.evict(100)
    cache.unlock(node)
    Request(cache, ids("xxxx"), namespace="other").abort()  # takes a slot that serves nothing
    turn = Request(cache, ids("aaaa"))
    assert turn.slot == leaf.slot
    assert turn.mapped == 0
    turn.abort()


def test_counters_of_evictions(cache: KVCache) -> None:
    for pages in (1, 2, 3):
        record_of_pages(cache, pages)
    cache.evict(3)
    counters = cache.counters()
    assert (counters["nodes_evicted"], counters["tokens_evicted"]) == (2, 12)


def time_of_evicting(make_cache: MakeCache, leaves: int, count: int) -> float:
    """Shortest time of several, of evicting the `count` oldest leaves of so many."""
    cache = make_cache(64, slots=3, slot_tokens=64, budget_pages=leaves)
    for leaf in range(leaves):
        slot = cache.bind(None, 0, 1)[0]
        cache.record(slot, ids(chr(leaf)))
        cache.release(slot)
    assert cache.usage()["evictable_pages"] == leaves
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert cache.evict(count) == count
        times.append(time.perf_counter() - start)
    assert cache.usage()["evictable_pages"] == leaves - 3 * count
    return min(times)


def test_evicting_takes_no_search(make_cache: MakeCache) -> None:
    """64 of 20,000 leaves take about as long as 64 of 200: the hundredfold would be a search."""
    few = min(time_of_evicting(make_cache, 200, 64) for _ in range(3))
    many = min(time_of_evicting(make_cache, 20_000, 64) for _ in range(2))
    assert many < 25 * few
