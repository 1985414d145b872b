# SPDX-License-Identifier: Apache-2.0
"""Driver failures at every call of every operation: no trace is left, and the same call succeeds when repeated."""

from collections.abc import Callable

import pytest
from core_harness import MakeCache, Memory, Request, ids, ints, run

from vt_sglang._core import DriverError, KVCache

BASE = "abcdef"


def unchanged(cache: KVCache) -> dict[str, object]:
    """What a failed operation may not change. Pages that were created stay, free."""
    usage = cache.usage()
    return {name: usage[name] for name in usage if name not in ("created_pages", "free_pages", "mapping_runs")}


def survive(cache: KVCache, operation: Callable[[], object], kind: str, expected_failures: int) -> object:
    """Fail the first call of a kind, then the second, and so on, until the operation gets by."""
    failures = 0
    while True:
        before = unchanged(cache)
        cache.inject_fault(kind, failures)
        try:
            result = operation()
        except DriverError:
            failures += 1
            cache.clear_faults()
            assert unchanged(cache) == before
            cache.check()
            cache.trim()  # what it had created before, so that the next attempt comes as far
        else:
            break
    cache.clear_faults()
    assert failures == expected_failures, f"{kind} was called {failures} times"
    return result


@pytest.mark.parametrize(("kind", "calls"), [("create", 3), ("map", 1), ("copy", 1)])
def test_bind(make_cache: MakeCache, kind: str, calls: int) -> None:
    """A bind that shares a page, copies a tail and takes two new pages."""
    cache = make_cache(inject_faults=True)
    run(cache, ids(BASE))
    extender = Request(cache, ids(BASE + "X"))
    node, matched = cache.match(None, ids(BASE))
    cache.lock(node)
    slot, tail, shared, _ = survive(cache, lambda: cache.bind(None, node, 16), kind, calls)
    assert (tail, shared, matched) == ("copied", 1, 6)
    memory = Memory(cache)
    assert (memory.tokens(slot, 0, 6) == memory.tokens(extender.slot, 0, 6)).all()
    extender.verify()
    cache.release(slot)
    cache.unlock(node)
    extender.abort()


@pytest.mark.parametrize(("kind", "calls"), [("create", 3), ("map", 1)])
def test_growth_of_a_batch(make_cache: MakeCache, kind: str, calls: int) -> None:
    cache = make_cache(inject_faults=True)
    one, two = Request(cache, ids("abcd")), Request(cache, ids("efgh"))
    survive(cache, lambda: cache.grow(ints(one.slot, two.slot), ints(12, 8)), kind, calls)
    assert [len(cache.slot_pages(it.slot)) for it in (one, two)] == [3, 2]
    one.verify()
    two.verify()
    one.abort()
    two.abort()


def test_the_pages_of_a_failed_bind_are_used_by_the_next(make_cache: MakeCache) -> None:
    cache = make_cache(inject_faults=True)
    cache.inject_fault("map")
    with pytest.raises(DriverError, match="map failed: injected"):
        cache.bind(None, 0, 12)
    usage = cache.usage()
    assert (usage["created_pages"], usage["free_pages"], usage["live_slots"]) == (4, 3, 0)
    request = Request(cache, ids("x" * 12))
    assert cache.usage()["created_pages"] == 4
    request.verify()
    request.abort()


def test_a_failed_bind_forgets_the_mappings_that_it_lost(make_cache: MakeCache) -> None:
    """The slot mapped pages of its last request where the failed batch was to go; they are mapped no more, and must
    not be adopted as if they were."""
    cache = make_cache(slots=2, inject_faults=True)
    run(cache, ids("aaaabbbb"))
    cache.inject_fault("map")
    with pytest.raises(DriverError):
        cache.bind("other", 0, 12)
    cache.clear_faults()
    again = Request(cache, ids("aaaabbbb"))
    assert again.matched == 8
    again.verify()
    again.abort()


@pytest.mark.parametrize("kind", ["unmap", "release"])
@pytest.mark.parametrize("successes", range(4))
def test_trim_that_fails_half_way_can_be_repeated(make_cache: MakeCache, kind: str, successes: int) -> None:
    """Some pages may have been given back by then; the others are as they were."""
    cache = make_cache(inject_faults=True)
    live = Request(cache, ids("live"))
    Request(cache, ids("x" * 16)).abort()
    cache.inject_fault(kind, successes)
    with pytest.raises(DriverError, match=f"{kind} failed"):
        cache.trim()
    cache.check()
    live.verify()
    assert cache.usage()["free_pages"] == (4 if kind == "unmap" else 4 - successes)
    cache.trim()
    assert cache.usage()["free_pages"] == 0
    live.abort()
    request = Request(cache, ids("y" * 16))
    request.verify()
    request.abort()


def test_a_failed_shedding_can_be_repeated(make_cache: MakeCache) -> None:
    cache = make_cache(slots=4, mapping_limit=6, inject_faults=True)
    run(cache, ids("aaaa"), "a")
    other = Request(cache, ids("bbbb"), namespace="b")
    cache.inject_fault("unmap")
    with pytest.raises(DriverError, match="unmap failed"):
        Request(cache, ids("cccc"), namespace="c")
    cache.clear_faults()
    cache.check()
    third = Request(cache, ids("cccc"), namespace="c")
    third.verify()
    other.verify()
    third.abort()
    other.abort()
    again = Request(cache, ids("aaaa"), namespace="a")
    again.verify()
    again.abort()


def test_a_fault_comes_once_and_when_it_was_asked_for(make_cache: MakeCache) -> None:
    cache = make_cache(inject_faults=True)
    cache.inject_fault("create", 2)
    run(cache, ids("abcdefgh"))
    with pytest.raises(DriverError, match="create failed: injected"):
        Request(cache, ids("x"))
    run(cache, ids("x"))
    cache.inject_fault("create")
    cache.clear_faults()
    run(cache, ids("y" * 32))


def test_faults_must_be_asked_for(cache: KVCache, make_cache: MakeCache) -> None:
    with pytest.raises(ValueError, match="inject_faults=True"):
        cache.inject_fault("map")
    with pytest.raises(ValueError, match="no such driver operation: mop"):
        make_cache(inject_faults=True).inject_fault("mop")
