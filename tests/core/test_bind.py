# SPDX-License-Identifier: Apache-2.0
"""Binding a slot: sharing whole pages, extending or copying the tail, and reusing what a slot maps already."""

import pytest
from core_harness import Geometry, MakeCache, Memory, Request, counter_changes, ids, ints, run

from vt_sglang._core import InvariantError, KVCache, OutOfPages

BASE = "abcdef"  # a page and a half, of four tokens a page


def test_whole_pages_are_shared_and_tails_are_not_disturbed(make_cache: MakeCache, geometry: Geometry) -> None:
    """Three branches of one prefix run at a time. One extends the tail in place, the others copy it."""
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    base = "s" * geometry.tokens_past(2)
    run(cache, ids(base))
    pages = geometry.pages_for(len(base))
    branches = [Request(cache, ids(base + letter)) for letter in "xyz"]
    assert [it.matched for it in branches] == [len(base)] * 3
    assert [it.tail for it in branches] == ["extended", "copied", "copied"]
    assert [it.shared for it in branches] == [pages, pages - 1, pages - 1]
    held = [cache.slot_pages(it.slot) for it in branches]
    assert held[0][: pages - 1] == held[1][: pages - 1] == held[2][: pages - 1]
    assert len({own[pages - 1] for own in held}) == 3
    for it in branches:
        it.append(ids("end"))
    for it in branches:
        it.verify()
    for it in branches:
        it.finish()
    for letter in "xyz":
        again = Request(cache, ids(base + letter + "end"))
        assert again.matched == len(base) + 4
        again.verify()
        again.abort()


def test_a_prefix_that_ends_on_a_page_border_has_no_tail(cache: KVCache) -> None:
    run(cache, ids("abcdefgh"))
    request = Request(cache, ids("abcdefghi"))
    assert (request.tail, request.shared, request.matched) == ("none", 2, 8)
    request.abort()


def test_a_request_without_a_prefix(cache: KVCache) -> None:
    request = Request(cache, ids(BASE))
    assert (request.tail, request.shared, request.mapped, request.matched) == ("none", 0, 2, 0)
    request.abort()


def test_the_tail_is_extended_again_after_an_aborted_extension(cache: KVCache) -> None:
    """What the first wrote there was never recorded."""
    run(cache, ids(BASE))
    first = Request(cache, ids(BASE + "X"))
    assert first.tail == "extended"
    first.abort()
    second = Request(cache, ids(BASE + "Y"))
    assert second.tail == "extended"
    second.verify()
    second.finish()


def test_a_recorded_extension_makes_the_next_branch_copy(cache: KVCache) -> None:
    run(cache, ids(BASE))
    run(cache, ids(BASE + "X"))
    branch = Request(cache, ids(BASE + "Y"))
    assert (branch.matched, branch.tail) == (6, "copied")
    branch.verify()
    branch.finish()
    for letter in "XY":
        again = Request(cache, ids(BASE + letter))
        assert again.matched == 7
        again.verify()
        again.abort()


def test_the_tail_is_extended_again_after_the_extension_was_evicted(cache: KVCache) -> None:
    run(cache, ids(BASE))
    run(cache, ids(BASE + "X"))
    node, _ = cache.match(None, ids(BASE))
    cache.lock(node)
    assert cache.evict(100) == 1
    cache.unlock(node)
    branch = Request(cache, ids(BASE + "Y"))
    assert (branch.matched, branch.tail) == (6, "extended")
    branch.verify()
    branch.finish()


def test_eviction_below_a_copied_tail_restores_the_page_of_the_original(cache: KVCache) -> None:
    """The page of BASE's tail is held by BASE and by a node two levels down, with a copy of the tail between them:

        BASE [page P, 2 tokens] -- "X" [page Q, a copy] -- "Y" [page P again, by the one who extended it]

    When "Y" is evicted, P ends at BASE's tail again, and may be extended.
    """
    run(cache, ids(BASE))
    extender = Request(cache, ids(BASE + "X"))
    copier = Request(cache, ids(BASE + "X"))
    assert (extender.tail, copier.tail) == ("extended", "copied")
    copier.record()
    extender.append(ids("Y"))
    node, duplicate, added = extender.record()
    assert (duplicate, added) == (True, 1)
    middle, _ = cache.match(None, ids(BASE + "X"))
    top, _ = cache.match(None, ids(BASE))
    assert cache.path_pages(top)[-1] == cache.path_pages(node)[-1] != cache.path_pages(middle)[-1]
    extender.abort()
    copier.abort()
    cache.lock(middle)
    assert cache.evict(100) == 1
    cache.check()
    cache.unlock(middle)
    branch = Request(cache, ids(BASE + "Z"))
    assert (branch.matched, branch.tail) == (6, "extended")
    branch.append(ids("ZZ"))
    again = Request(cache, ids(BASE + "X"))
    again.verify()
    branch.verify()
    again.abort()
    branch.finish()


def test_what_a_live_request_recorded_may_be_evicted(cache: KVCache) -> None:
    """Its pages are its own as long as it lives, and it can record them again."""
    request = Request(cache, ids(BASE))
    request.record()
    assert cache.evict(100) == 6
    cache.check()
    request.verify()
    assert cache.match(None, ids(BASE)) == (0, 0)
    request.append(ids("gh"))
    assert request.record()[1:] == (False, 8)
    request.abort()
    again = Request(cache, ids("abcdefgh"))
    assert again.matched == 8
    again.verify()
    again.abort()


def test_a_request_is_safe_from_branches_when_its_lock_is_gone(cache: KVCache) -> None:
    """A live request reads the whole prefix that it was bound to. Its lock may end before it does, and memory may run
    short, yet nobody may extend a page in place over bytes that it reads."""
    run(cache, ids("ab"))
    run(cache, ids("abcdef"))  # "cd" extends the first page in place
    reader = Request(cache, ids("abcdef"))
    cache.unlock(reader.node)
    top, _ = cache.match(None, ids("ab"))
    cache.lock(top)
    cache.evict(100)
    branch = Request(cache, ids("abXY"))
    branch.verify()
    reader.verify()
    branch.abort()
    cache.unlock(top)
    cache.release(reader.slot)


def test_a_writer_that_records_stays_the_only_writer(cache: KVCache) -> None:
    """Decode goes on past what a chunk recorded: whoever matches that must copy."""
    writer = Request(cache, ids(BASE))
    writer.record()
    reader = Request(cache, ids(BASE + "X"))
    assert reader.tail == "copied"
    writer.append(ids("gh"))
    reader.append(ids("Y"))
    writer.verify()
    reader.verify()
    writer.finish()
    reader.finish()


def test_a_returning_conversation_makes_no_driver_call(make_cache: MakeCache, geometry: Geometry) -> None:
    """The next turn adopts the previous turn's slot: nothing is created, mapped or copied for what it has."""
    cache = make_cache(geometry.token_bytes, budget_pages=64, slots=8)
    history = "q" * geometry.tokens_past(1)
    run(cache, ids(history))
    for _ in range(3):
        run(cache, ids("someone else"), "other")  # takes another slot
    before = cache.counters()
    turn = Request(cache, ids(history))
    changes = counter_changes(cache, before)
    assert turn.mapped == 0
    assert turn.tail == "extended"
    pages = geometry.pages_for(len(history))
    assert changes == {
        "binds": 1,
        "tokens_matched": len(history),
        "tokens_adopted": len(history),
        "pages_aliased": pages,
        "pages_adopted": pages,
        "tails_extended": 1,
    }
    turn.verify()
    turn.finish()


def test_the_slot_that_shares_most_is_adopted(cache: KVCache) -> None:
    """Of the idle slots the one below the longest common path is taken."""
    run(cache, ids("aaaabbbb"))
    short, long = Request(cache, ids("aaaabbbbeeee")), Request(cache, ids("aaaabbbbccccdddd"))
    long.finish()
    short.finish()
    turn = Request(cache, ids("aaaabbbbccccffff"))
    assert turn.slot == long.slot
    assert (turn.shared, turn.mapped) == (3, 1)
    turn.abort()


@pytest.mark.parametrize("move_pages", [True, False])
def test_of_slots_with_one_prefix_the_one_that_maps_it_is_adopted(make_cache: MakeCache, move_pages: bool) -> None:
    """Two computed it at the same time, each in pages of its own, of which the tree has the first's."""
    cache = make_cache(1024, move_pages=move_pages)
    requests = [Request(cache, ids("a" * 20)) for _ in range(2)]
    slots = [it.slot for it in requests]
    for it in requests:
        it.record()
    for it in requests:
        it.finish()
    before = cache.counters()
    third = Request(cache, ids("a" * 20 + "b"))
    assert (third.slot, third.matched) == (slots[0], 20)
    changes = counter_changes(cache, before)
    assert changes["tokens_adopted"] == 20
    assert changes["pages_mapped"] == 1
    third.verify()


def test_slots_that_share_nothing_are_taken_first(make_cache: MakeCache) -> None:
    """A new conversation takes the slot of a forgotten one rather than that of one that may return."""
    cache = make_cache(slots=4)
    kept = run(cache, ids("aaaa"), "kept")
    forgotten = Request(cache, ids("bbbb"), namespace="gone")
    forgotten.abort()
    new = [Request(cache, ids("cccc"), namespace="new", write=False) for _ in range(2)]
    assert kept.slot not in [it.slot for it in new]
    turn = Request(cache, ids("aaaa"), namespace="kept")
    assert turn.slot == kept.slot
    for it in (*new, turn):
        it.abort()


def test_every_slot_is_used_and_then_no_more(make_cache: MakeCache) -> None:
    cache = make_cache(slots=4)
    requests = [Request(cache, ids("abcd"), namespace=str(i)) for i in range(3)]
    assert sorted(it.slot for it in requests) == [1, 2, 3], "0 is padding"
    assert cache.idle_slots() == 0
    with pytest.raises(ValueError, match="all 3 slots are live"):
        Request(cache, ids("abcd"))
    requests.pop().abort()
    requests.append(Request(cache, ids("abcd")))
    for it in requests:
        it.verify()
        it.abort()
    assert cache.idle_slots() == 3


def test_a_bind_that_fails_leaves_no_trace(make_cache: MakeCache) -> None:
    cache = make_cache(budget_pages=4)
    run(cache, ids(BASE))
    node, _ = cache.match(None, ids(BASE))
    cache.lock(node)
    before = cache.usage(), cache.counters()
    with pytest.raises(OutOfPages, match="3 needed, 2 free or evictable"):
        cache.bind(None, node, 20)
    assert (cache.usage(), cache.counters()) == before
    slot = cache.bind(None, node, 16)[0]
    cache.release(slot)
    cache.unlock(node)


def test_binding_takes_room_for_what_will_be_generated(cache: KVCache) -> None:
    request = Request(cache, ids("abc"), room=10)
    assert len(cache.slot_pages(request.slot)) == 4
    assert Memory(cache).accessible(request.slot, 13)
    request.abort()


def test_bind_needs_a_locked_node(cache: KVCache) -> None:
    run(cache, ids(BASE))
    node, _ = cache.match(None, ids(BASE))
    with pytest.raises(InvariantError, match="locked"):
        cache.bind(None, node, 6)


@pytest.mark.parametrize("tokens", [5, 65])
def test_bind_refuses_a_length_that_cannot_be(cache: KVCache, tokens: int) -> None:
    """Shorter than the prefix, or longer than a slot."""
    run(cache, ids(BASE))
    node, _ = cache.match(None, ids(BASE))
    cache.lock(node)
    with pytest.raises(ValueError, match=f"64 tokens.*prefix 6.*{tokens}"):
        cache.bind(None, node, tokens)
    cache.unlock(node)


def test_an_empty_request(cache: KVCache) -> None:
    request = Request(cache, [])
    assert cache.slot_pages(request.slot) == []
    request.append(ids("ab"))
    request.verify()
    request.finish()
    again = Request(cache, ids("ab"))
    assert again.matched == 2
    again.abort()


def test_a_slot_takes_pages_that_it_maps_and_that_are_free(cache: KVCache) -> None:
    """Growth into a stale mapping of a free page costs no call."""
    first = Request(cache, ids("aaaabbbbcccc"))
    pages = cache.slot_pages(first.slot)
    first.abort()
    second = Request(cache, ids("dddd"))
    assert second.slot == first.slot
    before = cache.counters()
    second.append(ids("eeeeffff"))
    assert counter_changes(cache, before) == {"pages_reused": 2}
    assert cache.slot_pages(second.slot) == pages
    second.verify()
    second.abort()


def test_a_stale_mapping_of_a_held_page_is_replaced(make_cache: MakeCache) -> None:
    """The page that a slot maps from its last request belongs to the tree now: growth must not write there."""
    cache = make_cache(slots=3)
    run(cache, ids("aaaabbbb"))
    request = Request(cache, ids("aaaa"))
    assert request.slot == 1
    stale = cache.path_pages(cache.match(None, ids("aaaabbbb"))[0])[1]
    request.append(ids("cccc"))
    assert cache.slot_pages(request.slot)[1] != stale
    other = Request(cache, ids("aaaabbbb"))
    other.verify()
    request.verify()
    other.abort()
    request.abort()


def test_growing_is_counted_from_the_request_itself(cache: KVCache) -> None:
    request = Request(cache, ids(BASE))
    cache.grow(ints(request.slot), ints(6))
    with pytest.raises(ValueError, match=f"slot {request.slot} has 6 tokens.*cannot grow to 5"):
        cache.grow(ints(request.slot), ints(5))
    with pytest.raises(ValueError, match="at most 64; it cannot grow to 65"):
        cache.grow(ints(request.slot), ints(65))
    with pytest.raises(ValueError, match="named twice"):
        cache.grow(ints(request.slot, request.slot), ints(7, 7))
    request.abort()
