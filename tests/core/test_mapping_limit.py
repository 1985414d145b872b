# SPDX-License-Identifier: Apache-2.0
"""A system lets a process have only so many mappings. Idle slots are unmapped to stay under that.

Counted are runs of pages that follow one another, and gaps after them: two for a slot with one run.
"""

import pytest
from core_harness import MakeCache, Memory, Request, counter_changes, ids, ints, run, system_mappings

from vt_sglang._core import DriverError, KVCache, host_mapping_limit


def runs_of_the_system(cache: KVCache) -> int:
    """What the kernel keeps for the arena: a mapping for each run of pages and for each gap."""
    return len(system_mappings(cache.base, cache.base + cache.slots * cache.slot_bytes))


def test_the_hosts_limit_leaves_room_for_the_process() -> None:
    with open("/proc/sys/vm/max_map_count") as file:
        allowed = int(file.read())
    assert 0 <= host_mapping_limit() < allowed


def test_idle_slots_are_shed_and_everything_still_works(make_cache: MakeCache) -> None:
    """Many conversations, each on pages that lie apart, under a limit that holds few of them."""
    cache = make_cache(slots=12, budget_pages=64, mapping_limit=20)
    for turn in range(3):
        for conversation in range(11):
            text = "hello" + chr(ord("A") + conversation) * (4 + 4 * turn)
            request = Request(cache, ids(text), namespace=str(conversation))
            request.verify()
            request.finish()
            assert cache.usage()["mapping_runs"] <= 20
            assert runs_of_the_system(cache) <= cache.usage()["mapping_runs"]
            cache.check()
    assert cache.counters()["slots_shed"] > 0


def test_the_longest_idle_slot_is_shed_first(make_cache: MakeCache) -> None:
    """And what it served is still in the tree."""
    cache = make_cache(slots=5, mapping_limit=8)
    requests = [Request(cache, ids(letter * 4)) for letter in "abc"]
    for it in requests:
        it.finish()
    assert cache.usage()["mapping_runs"] == runs_of_the_system(cache) == 8
    before = cache.counters()
    new = Request(cache, ids("dddd"))
    assert counter_changes(cache, before)["slots_shed"] == 1
    mapped = {slot for slot, _ in Memory(cache).mapped_pages()}
    assert mapped == {0, requests[1].slot, requests[2].slot, new.slot}
    new.finish()
    again = Request(cache, ids("aaaa"))
    assert again.matched == 4
    again.verify()
    again.abort()


def test_a_slot_in_flight_is_not_shed(make_cache: MakeCache) -> None:
    cache = make_cache(slots=4, mapping_limit=6)
    flying, idle = Request(cache, ids("aaaa")), Request(cache, ids("bbbb"))
    forward = cache.begin_forward(ints(flying.slot))
    flying.finish()
    idle.finish()
    new = Request(cache, ids("cccc"))
    mapped = {slot for slot, _ in Memory(cache).mapped_pages()}
    assert mapped == {0, flying.slot, new.slot}
    new.abort()
    cache.complete_forward(forward)


def test_nothing_is_taken_from_a_slot_in_flight_even_in_need(make_cache: MakeCache) -> None:
    cache = make_cache(slots=3, mapping_limit=4)
    flying = Request(cache, ids("aaaa"))
    forward = cache.begin_forward(ints(flying.slot))
    flying.finish()
    before = Memory(cache).mapped_pages()
    with pytest.raises(DriverError, match="max_map_count"):
        Request(cache, ids("cccc"))
    assert Memory(cache).mapped_pages() == before
    cache.complete_forward(forward)
    run(cache, ids("cccc"))


def test_stale_mappings_of_live_slots_are_shed_last(make_cache: MakeCache) -> None:
    cache = make_cache(slots=3, mapping_limit=7)
    first, second = Request(cache, ids("aaaa")), Request(cache, ids("bbbb"))
    first.append(ids("aaaa"))  # not next to its first page: a run of its own
    assert cache.usage()["mapping_runs"] == runs_of_the_system(cache) == 7
    first.finish()
    first = Request(cache, ids("cccc"))  # the second page index is stale now
    second.append(ids("bbbb"))
    first.verify()
    second.verify()
    first.abort()
    second.abort()


def test_growth_keeps_the_stale_mappings_that_it_uses(make_cache: MakeCache) -> None:
    """A request grows over free pages that its slot maps already, and past them, while mappings are short: what is
    shed must not be the pages just claimed, though that would make room."""
    cache = make_cache(slots=3, mapping_limit=10)
    first, other = Request(cache, ids("aaaa")), Request(cache, ids("bbbb"))
    for _ in range(2):
        first.append(ids("aaaa"))
        other.append(ids("bbbb"))
    first.abort()
    first = Request(cache, ids("cccc"))
    assert cache.usage()["mapping_runs"] == 10, "2 for the padding, 4 for each slot with three pages that lie apart"
    before = cache.slot_pages(first.slot)
    with pytest.raises(DriverError, match="max_map_count"):
        cache.grow(ints(first.slot), ints(16))
    cache.check()
    assert cache.slot_pages(first.slot) == before
    first.append(ids("ddddeeee"))
    first.verify()
    other.verify()
    first.abort()
    other.abort()


def test_when_nothing_can_be_shed_the_error_says_what_to_do(make_cache: MakeCache) -> None:
    cache = make_cache(slots=4, mapping_limit=6)
    requests = [Request(cache, ids(letter * 4)) for letter in "ab"]
    before = cache.usage()
    with pytest.raises(DriverError, match=r"more than 6 separate runs.*vm\.max_map_count"):
        Request(cache, ids("cccc"))
    assert cache.usage() | {"created_pages": 0, "free_pages": 0} == before | {"created_pages": 0, "free_pages": 0}
    for it in requests:
        it.verify()
    requests[0].abort()
    run(cache, ids("cccc"))
    requests[1].abort()


def test_no_limit_of_ones_own_means_the_systems(make_cache: MakeCache) -> None:
    cache = make_cache(slots=12, budget_pages=64)
    for conversation in range(11):
        run(cache, ids("x" * 8), str(conversation))
    assert cache.counters()["slots_shed"] == 0


def test_room_is_only_promised_where_it_can_be_mapped(make_cache: MakeCache) -> None:
    """Pages that could be taken but not mapped do not count as room; what nobody uses makes way for them."""
    cache = make_cache(slots=5, budget_pages=64, mapping_limit=22)
    assert cache.mappable_pages() == 10  # besides the padding slot's page and gap
    scattered = [Request(cache, ids(letter * 8)) for letter in "abc"]
    promised = cache.mappable_pages()
    assert promised == (22 - cache.usage()["mapping_runs"]) // 2
    assert cache.make_room(promised)
    assert not cache.make_room(promised + 1)
    assert cache.usage()["budget_pages"] - cache.usage()["held_pages"] > promised, "memory there is"
    for it in scattered:
        it.finish()
    assert cache.mappable_pages() == 10
    assert cache.make_room(10)


def test_what_is_promised_can_be_mapped(make_cache: MakeCache) -> None:
    """Growing by that many pages, whatever idle slots still map."""
    cache = make_cache(slots=6, budget_pages=64, mapping_limit=30)
    for letter in "abcd":
        Request(cache, ids(letter * 12)).finish()
    request = Request(cache, ids("e" * 4))
    promised = cache.mappable_pages()
    assert promised > 3
    cache.grow(ints(request.slot), ints(4 * (1 + promised)))
    assert cache.usage()["mapping_runs"] <= 30
    request.abort()
