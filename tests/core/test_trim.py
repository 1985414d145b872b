# SPDX-License-Identifier: Apache-2.0
"""Giving memory back to the system."""

from core_harness import PAGE, Geometry, MakeCache, Memory, Request, ids, run

from vt_sglang._core import KVCache


def test_trim_gives_free_pages_back(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    kept = Request(cache, ids("kept"))
    gone = Request(cache, ids("gone" * 8), namespace="gone")
    pages = geometry.pages_for(32)
    gone.abort()
    assert cache.trim() == pages
    usage = cache.usage()
    assert usage["free_pages"] == 0
    assert cache.physical_bytes() == usage["created_pages"] * PAGE == (1 + geometry.pages_for(4)) * PAGE
    kept.verify()
    kept.abort()


def test_trim_keeps_what_it_is_asked_to(cache: KVCache) -> None:
    Request(cache, ids("x" * 24)).abort()
    assert cache.trim(4) == 2
    assert cache.usage()["free_pages"] == 4
    assert cache.trim(4) == 0
    assert cache.trim(100) == 0
    assert cache.trim() == 4


def test_trimmed_pages_are_mapped_nowhere(cache: KVCache) -> None:
    """Neither in idle slots nor in the stale part of a live one."""
    Request(cache, ids("x" * 16)).abort()
    live = Request(cache, ids("y"))
    assert len(Memory(cache).mapped_pages()) == 5, "padding and the stale mappings of the slot's last request"
    cache.trim()
    assert Memory(cache).mapped_pages() == {(0, 0): 0, (live.slot, 0): cache.slot_pages(live.slot)[0]}
    live.verify()
    live.abort()


def test_recorded_pages_are_not_trimmed(cache: KVCache) -> None:
    run(cache, ids("abcdefgh"))
    assert cache.trim() == 0
    again = Request(cache, ids("abcdefgh"))
    assert again.matched == 8
    again.verify()
    again.abort()


def test_pages_return_when_they_are_needed(cache: KVCache) -> None:
    """The lowest page ids first, so that the memory in use stays dense."""
    Request(cache, ids("x" * 32)).abort()
    cache.trim()
    request = Request(cache, ids("abcdefgh"))
    assert cache.slot_pages(request.slot) == [1, 2]
    request.verify()
    request.abort()
    counters = cache.counters()
    assert (counters["pages_created"], counters["pages_released"]) == (10, 8)


def test_evict_and_trim_return_everything_but_the_padding(make_cache: MakeCache, geometry: Geometry) -> None:
    cache = make_cache(geometry.token_bytes, budget_pages=64)
    for text in ("abcdefgh", "abcdxyz", "q"):
        run(cache, ids(text))
    cache.evict(10**6)
    cache.trim()
    assert cache.physical_bytes() == PAGE
    assert len(set(Memory(cache).mapped_pages().values())) == 1
