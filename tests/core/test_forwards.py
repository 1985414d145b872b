# SPDX-License-Identifier: Apache-2.0
"""Forwards in flight: a slot that one uses is neither bound anew nor remapped before it is completed."""

import pytest
from core_harness import MakeCache, Memory, Request, ids, ints, run

from vt_sglang._core import KVCache, SlotsBusy


def test_forwards_are_numbered_in_order(cache: KVCache) -> None:
    request = Request(cache, ids("ab"))
    assert [cache.begin_forward(ints(request.slot)) for _ in range(3)] == [1, 2, 3]
    assert cache.begin_forward(ints()) == 4
    request.abort()


def test_a_slot_in_flight_is_busy_until_its_forward_is_completed(make_cache: MakeCache) -> None:
    cache = make_cache(slots=2)
    request = Request(cache, ids("abcd"))
    forward = cache.begin_forward(ints(request.slot))
    request.finish()
    assert cache.idle_slots() == 1, "it has no live request"
    with pytest.raises(SlotsBusy, match=f"complete forward {forward}"):
        Request(cache, ids("abcd"))
    cache.check()
    cache.complete_forward(forward)
    again = Request(cache, ids("abcd"))
    assert (again.slot, again.mapped) == (request.slot, 0)
    again.abort()


def test_a_slot_waits_for_the_last_forward_that_used_it(make_cache: MakeCache) -> None:
    cache = make_cache(slots=2)
    request = Request(cache, ids("abcd"))
    first = cache.begin_forward(ints(request.slot))
    second = cache.begin_forward(ints(request.slot))
    request.abort()
    cache.complete_forward(first)
    with pytest.raises(SlotsBusy, match=f"complete forward {second}"):
        Request(cache, ids("abcd"))
    cache.complete_forward(second)
    Request(cache, ids("abcd")).abort()


def test_a_slot_that_maps_nothing_is_not_for_a_moments_need(make_cache: MakeCache) -> None:
    """Where contents move and all pages are mapped: the request waits for the one that is about to be idle."""
    cache = make_cache(slots=4, budget_pages=8, token_bytes=1024, move_pages=True)  # four tokens a page
    first = Request(cache, ids("a" * 20))
    second = Request(cache, ids("b" * 12))
    forward = cache.begin_forward(ints(first.slot))
    first.finish()
    with pytest.raises(SlotsBusy, match=f"complete forward {forward} first"):
        Request(cache, ids("c" * 4))
    cache.complete_forward(forward)
    third = Request(cache, ids("c" * 4))
    assert third.slot == first.slot
    fourth = Request(cache, ids("d" * 4))  # nothing is about to be idle
    assert len({it.slot for it in (second, third, fourth)}) == 3
    for it in second, third, fourth:
        it.verify()
        it.abort()
    cache.check()


@pytest.mark.parametrize("pages", [31, 32])
def test_a_conversation_waits_for_its_own_slot_if_mapping_another_is_much(make_cache: MakeCache, pages: int) -> None:
    """It comes back while a forward still includes the slot of its last turn."""
    cache = make_cache(slots=4, slot_tokens=200, budget_pages=150, token_bytes=1024, move_pages=True)
    first = Request(cache, ids("a" * 4 * pages))
    forward = cache.begin_forward(ints(first.slot))
    first.finish()
    if pages == 32:
        with pytest.raises(SlotsBusy, match=f"complete forward {forward} first"):
            Request(cache, ids("a" * 4 * pages + "b"))
        cache.check()
        cache.complete_forward(forward)
    again = Request(cache, ids("a" * 4 * pages + "b"))
    assert (again.slot == first.slot) == (pages == 32)
    again.verify()
    again.abort()


def test_completing_a_forward_completes_all_before_it(make_cache: MakeCache) -> None:
    cache = make_cache(slots=4)
    requests = [Request(cache, ids("abcd")) for _ in range(3)]
    forwards = [cache.begin_forward(ints(it.slot)) for it in requests]
    for it in requests:
        it.abort()
    cache.complete_forward(forwards[1])
    ready = [Request(cache, ids("abcd"), write=False) for _ in range(2)]
    assert {it.slot for it in ready} == {it.slot for it in requests[:2]}
    with pytest.raises(SlotsBusy):
        Request(cache, ids("abcd"))
    cache.complete_forward(forwards[0])  # late, and without effect
    with pytest.raises(SlotsBusy):
        Request(cache, ids("abcd"))
    cache.complete_forward(forwards[2])
    ready.append(Request(cache, ids("abcd"), write=False))
    for it in ready:
        it.abort()


def test_another_slot_is_taken_while_one_is_in_flight(cache: KVCache) -> None:
    request = Request(cache, ids("abcd"))
    cache.begin_forward(ints(request.slot))
    request.finish()
    turn = Request(cache, ids("abcde"))
    assert turn.slot != request.slot
    assert turn.matched == 4
    turn.verify()
    turn.abort()
    cache.complete_forward(1)


def test_a_completed_forward_holds_nothing(make_cache: MakeCache) -> None:
    """Completed while the request lives: the slot is idle as soon as the request ends."""
    cache = make_cache(slots=2)
    request = Request(cache, ids("abcd"))
    cache.complete_forward(cache.begin_forward(ints(request.slot)))
    request.abort()
    Request(cache, ids("abcd")).abort()


def test_a_late_completion_of_an_earlier_forward_undoes_nothing(make_cache: MakeCache) -> None:
    cache = make_cache(slots=2)
    request = Request(cache, ids("abcd"))
    first, second = (cache.begin_forward(ints(request.slot)) for _ in range(2))
    cache.complete_forward(second)
    cache.complete_forward(first)
    request.abort()
    Request(cache, ids("abcd")).abort()


def test_pages_of_a_slot_in_flight_are_free_but_not_given_back(make_cache: MakeCache) -> None:
    """Later work on the same stream may take them; the driver may not, as unmapping does not wait for kernels."""
    cache = make_cache(slots=3)
    request = Request(cache, ids("abcdefgh"))
    forward = cache.begin_forward(ints(request.slot))
    request.abort()
    assert cache.usage()["free_pages"] == 2
    assert cache.trim() == 0
    assert Memory(cache).accessible(request.slot, 8)
    cache.complete_forward(forward)
    assert cache.trim() == 2
    assert not Memory(cache).accessible(request.slot, 1)


def test_eviction_leaves_the_mappings_of_a_slot_in_flight(make_cache: MakeCache) -> None:
    cache = make_cache(slots=3)
    request = Request(cache, ids("abcdefgh"))
    forward = cache.begin_forward(ints(request.slot))
    request.finish()
    before = Memory(cache).mapped_pages()
    cache.evict(100)
    run(cache, ids("xyzxyz"))
    after = Memory(cache).mapped_pages()
    assert {at: page for at, page in after.items() if at[0] == request.slot} == {
        at: page for at, page in before.items() if at[0] == request.slot
    }
    cache.complete_forward(forward)


def test_a_forward_that_has_not_begun_cannot_be_completed(cache: KVCache) -> None:
    with pytest.raises(ValueError, match="forward 1 has not begun"):
        cache.complete_forward(1)


def test_a_forward_uses_live_slots(cache: KVCache) -> None:
    request = Request(cache, ids("ab"))
    other = request.slot + 1
    with pytest.raises(ValueError, match=f"slot {other} is not live"):
        cache.begin_forward(ints(request.slot, other))
    assert cache.begin_forward(ints(request.slot)) == 1, "the refused one has no number"
    request.abort()
    cache.complete_forward(1)
