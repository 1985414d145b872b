# SPDX-License-Identifier: Apache-2.0
"""There is no memory for a page that the budget allows: what is created goes on serving, and the ledger says so."""

import pytest
from core_harness import Geometry, MakeCache, Request, counter_changes, ids, ints, ledger, run

from vt_sglang._core import KVCache, OutOfPages

FORWARDS_BEFORE_RETRY = 64


@pytest.fixture
def short(make_cache: MakeCache) -> KVCache:
    """Four tokens a page, 8 pages allowed, memory for 4 besides the padding page."""
    cache = make_cache(budget_pages=8, inject_faults=True)
    cache.limit_memory(5)
    return cache


def test_a_bind_evicts_instead(short: KVCache) -> None:
    run(short, ids("a" * 16))
    request = Request(short, ids("b" * 12))
    request.verify()
    assert short.counters()["creations_failed"] == 1
    assert short.usage()["created_pages"] == 5
    assert short.usage()["withheld_pages"] == 4
    assert short.usage()["tree_tokens"] == 0
    request.abort()


def test_a_growth_evicts_instead(short: KVCache) -> None:
    request = Request(short, ids("b" * 8))
    run(short, ids("a" * 8))
    request.append(ids("b" * 8))
    request.verify()
    assert short.usage()["tree_tokens"] == 0
    request.abort()


@pytest.mark.parametrize("operation", ["bind", "grow"])
def test_what_does_not_fit_is_refused_and_changes_nothing(short: KVCache, operation: str) -> None:
    request = Request(short, ids("x" * 12))
    before = short.usage()
    grow = operation == "grow"
    with pytest.raises(OutOfPages, match="2 needed, 1 free or evictable"):
        short.grow(ints(request.slot), ints(20)) if grow else short.bind("other", 0, 8)
    known = {"created_pages": 5, "free_pages": 1, "withheld_pages": 4}
    assert short.usage() == before | known
    request.verify()
    short.check()
    request.append(ids("y" * 4))
    request.verify()
    request.abort()


def test_the_ledger_counts_what_is_withheld_as_taken(make_cache: MakeCache, geometry: Geometry) -> None:
    """SGLang's sum stays the total, and what is reported can be had."""
    cache = make_cache(geometry.token_bytes, slot_tokens=geometry.tokens_in(32), inject_faults=True)
    total = cache.total_tokens
    run(cache, [5] * geometry.tokens_in(9))
    cache.limit_memory(21)
    cache.create_ahead(32)
    assert cache.usage()["withheld_pages"] == 12
    assert ledger(cache) == cache.total_tokens == total
    assert cache.available_tokens() + cache.evictable_tokens() == geometry.tokens_in(20)
    assert cache.deliverable_pages() == 20
    request = Request(cache, [6] * geometry.tokens_in(20))
    assert ledger(cache) == total - geometry.tokens_in(20)
    assert cache.deliverable_pages() == 0
    request.verify()
    request.finish()
    cache.evict(32)
    assert ledger(cache) == total
    assert cache.available_tokens() == geometry.tokens_in(20)


def test_room_that_was_made_is_there(make_cache: MakeCache) -> None:
    """Pages are created when room is made and not when they are needed, by when others may have the memory."""
    cache = make_cache(budget_pages=8, inject_faults=True)
    request = Request(cache, ids("x" * 8))
    assert cache.make_room(4)
    cache.limit_memory(0)
    before = cache.counters()
    request.append(ids("y" * 16))
    request.verify()
    assert "creations_failed" not in counter_changes(cache, before)
    request.abort()


def test_room_is_made_of_what_there_is(short: KVCache) -> None:
    run(short, ids("a" * 8))
    request = Request(short, ids("b" * 4))
    assert not short.make_room(4)
    assert short.usage()["tree_tokens"] == 8, "nothing was evicted"
    assert short.usage()["withheld_pages"] == 4
    assert short.make_room(3)
    assert short.usage()["tree_tokens"] == 0
    request.append(ids("b" * 12))
    request.verify()
    request.abort()


def test_creating_ahead_evicts_nothing(short: KVCache) -> None:
    run(short, ids("a" * 8))
    short.create_ahead(2)
    assert short.usage()["free_pages"] == 2
    assert short.usage()["withheld_pages"] == 0
    short.create_ahead(3)
    assert short.usage()["free_pages"] == 2
    assert short.usage()["withheld_pages"] == 4
    assert short.usage()["tree_tokens"] == 8


def test_it_is_tried_again_after_a_while(short: KVCache) -> None:
    """Counted in forwards; by one page, and where that succeeds all are available again."""
    request = Request(short, ids("x" * 16))
    assert not short.make_room(1)
    failed = short.counters()["creations_failed"]
    for _ in range(FORWARDS_BEFORE_RETRY - 1):
        short.begin_forward(ints(request.slot))
        assert not short.make_room(1)
    assert short.counters()["creations_failed"] == failed
    short.begin_forward(ints(request.slot))
    assert not short.make_room(1)
    assert short.counters()["creations_failed"] == failed + 1
    short.clear_faults()
    for _ in range(FORWARDS_BEFORE_RETRY):
        assert not short.make_room(1)
        short.begin_forward(ints(request.slot))
    assert short.make_room(4)
    assert short.usage()["withheld_pages"] == 0
    request.append(ids("y" * 16))
    request.verify()
    request.abort()


def test_it_can_be_tried_again_at_once(short: KVCache) -> None:
    short.create_ahead(8)
    short.create_ahead(8, retry=True)
    assert short.counters()["creations_failed"] == 2
    short.clear_faults()
    short.create_ahead(1)
    assert short.usage()["withheld_pages"] == 4
    short.create_ahead(1, retry=True)
    assert short.usage()["withheld_pages"] == 0
    assert short.usage()["created_pages"] == 6, "one more page shows that there is memory"
    short.create_ahead(8, retry=True)
    assert short.usage()["created_pages"] == 9


def test_pages_that_were_given_back_can_be_created_again(short: KVCache) -> None:
    short.create_ahead(8)
    short.trim(1)
    assert short.usage()["withheld_pages"] == 4
    assert short.deliverable_pages() == 4
    run(short, ids("x" * 16))
    short.limit_memory(0)
    short.evict(8)
    short.trim(2)
    assert short.deliverable_pages() == 8, "as far as was known: the last creation had succeeded"
    with pytest.raises(OutOfPages, match="3 needed, 2 free"):
        short.bind(None, 0, 12)


def test_a_match_leaves_room_to_grow_in_what_there_is(make_cache: MakeCache) -> None:
    """A request that is alone gets every page, though its prefix ends inside one that it has to copy."""
    cache = make_cache(budget_pages=16, slots=4, inject_faults=True)
    run(cache, ids("abcdef"))
    run(cache, ids("abcdefX"))
    cache.limit_memory(cache.usage()["created_pages"] + 2)
    cache.create_ahead(16)
    there = 16 - cache.usage()["withheld_pages"]
    for total in (4 * there, 4 * there + 9):
        node, matched = cache.match(None, ids("abcdef"), None, total)
        assert matched == 4
        cache.lock(node)
        slot, *_ = cache.bind(None, node, 4 * there)
        cache.release(slot)
        cache.unlock(node)
