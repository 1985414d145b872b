# SPDX-License-Identifier: Apache-2.0
"""What a thread of the cache's maps and creates before it is needed."""

import time
from collections.abc import Callable

from core_fake_cuda import OUT_OF_MEMORY, FakeCuda
from core_harness import PAGE, Request, counter_changes, ids, ints, run

from vt_sglang._core import KVCache

TOKEN = 1024  # bytes: four tokens a page


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


def make(fake_cuda: FakeCuda) -> KVCache:
    return fake_cuda.cache(TOKEN, slots=6, slot_tokens=64, budget_pages=40, move_pages=True, map_ahead=True)


def test_growth_finds_its_page_mapped(fake_cuda: FakeCuda) -> None:
    """From the second page on: the first growth finds out that memory is to be taken ahead."""
    cache = make(fake_cuda)
    request = Request(cache, ids("aaaa"))
    cache.finish_ahead()
    request.append(ids("b"))
    cache.finish_ahead()
    request.append(ids("b"))
    cache.finish_ahead()
    fake_cuda.reset()
    before = cache.counters()
    request.append(ids("bb"))
    request.append(ids("c"))
    changes = counter_changes(cache, before)
    assert "pages_mapped" not in changes
    assert changes["pages_reused"] == 1
    request.verify()
    cache.finish_ahead()
    assert cache.counters()["pages_mapped_ahead"] == 2  # and the next one already
    assert cache.costs(request.slot)["pages_mapped"] == 2
    cache.check()
    request.abort()


def test_what_waits_is_done_by_who_needs_it(fake_cuda: FakeCuda) -> None:
    """The thread is held up in a call; a growth needs what stands behind it, waits for that one call, and cancels the
    rest."""
    cache = make(fake_cuda)
    request = Request(cache, ids("aaaa"))
    cache.finish_ahead()
    other = Request(cache, ids("xxxx"), namespace="other")
    cache.finish_ahead()
    fake_cuda.hold("cuMemSetAccess")
    other.cache.grow(ints(other.slot), ints(5))  # its next page is to be mapped ahead, and is not for now
    until(fake_cuda.waiting)
    before = cache.counters()["pages_mapped_ahead"]
    fake_cuda.hold(None)
    request.append(ids("bbbbccccddddeeee"))
    request.verify()
    cache.finish_ahead()
    assert cache.counters()["pages_mapped_ahead"] >= before
    assert cache.counters()["driver_wait_ns"] > 0
    cache.check()
    other.write(0)
    for it in request, other:
        it.abort()


def test_a_prefix_that_branches_is_mapped_in_a_spare_slot(fake_cuda: FakeCuda) -> None:
    """Two live requests share it; the third finds it mapped where nothing was."""
    cache = make(fake_cuda)
    system = "sssstttteeeemmmm"  # four pages
    first = Request(cache, ids(system + "a"))
    first.record()
    second = Request(cache, ids(system + "b"))
    second.record()  # from here on it branches
    cache.finish_ahead()
    before = cache.counters()
    third = Request(cache, ids(system + "c"))
    changes = counter_changes(cache, before)
    assert changes["tokens_adopted"] == changes["tokens_matched"] == 16
    for it in first, second, third:
        it.verify()
        it.abort()
    cache.check()


def test_a_prepared_slot_can_be_had_before_it_is_ready(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    system = "sssstttteeeemmmm"
    first = Request(cache, ids(system + "a"))
    first.record()
    second = Request(cache, ids(system + "b"))
    cache.finish_ahead()
    fake_cuda.hold("cuMemMap")
    second.record()
    until(fake_cuda.waiting)
    fake_cuda.hold(None)
    third = Request(cache, ids(system + "c"))
    for it in first, second, third:
        it.verify()
        it.abort()
    cache.finish_ahead()
    cache.check()


def test_a_failure_of_the_thread_is_nobodys(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    request = Request(cache, ids("aaaa"))
    cache.finish_ahead()
    request.append(ids("b"))
    cache.finish_ahead()
    request.append(ids("b"))
    cache.finish_ahead()
    fake_cuda.fail("cuMemMap", 0, OUT_OF_MEMORY)
    request.append(ids("bbc"))  # what it needs is mapped; the page after that cannot be
    cache.finish_ahead()
    fake_cuda.clear_failures()
    request.append(ids("cccdddde"))
    request.verify()
    cache.check()
    request.abort()


def test_memory_taken_ahead_is_given_back(fake_cuda: FakeCuda) -> None:
    """By a trim, and where a page is needed for which it was not taken."""
    cache = make(fake_cuda)
    request = Request(cache, ids("aaaabbbb"))
    cache.finish_ahead()
    assert cache.physical_bytes() > cache.usage()["created_pages"] * PAGE
    request.abort()
    cache.trim(0)
    assert cache.physical_bytes() == cache.usage()["created_pages"] * PAGE == PAGE
    assert fake_cuda.count("handles") == 1
    cache.check()
    run(cache, ids("aaaabbbb"))


def test_a_limit_holds_for_memory_taken_ahead(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    requests = [Request(cache, ids("aaaabbbb"), namespace=str(i)) for i in range(4)]
    cache.finish_ahead()
    for it in requests:
        it.abort()
    cache.complete_forward(cache.begin_forward(ints()))  # ahead of which new pages were cleared
    cache.set_limit(3)
    cache.shrink(10_000)
    cache.finish_ahead()
    assert cache.physical_bytes() <= 4 * PAGE  # and the padding
    run(cache, ids("aaaabb"))
    cache.finish_ahead()
    assert cache.physical_bytes() <= 4 * PAGE
    cache.check()


def test_the_ledger_does_not_know_of_it(fake_cuda: FakeCuda) -> None:
    """A page mapped ahead is free: all of the budget can be had."""
    cache = make(fake_cuda)
    request = Request(cache, ids("aaaa"))
    for _ in range(3):
        request.append(ids("bbbb"))
        cache.finish_ahead()
    assert cache.available_tokens() == cache.total_tokens - 16
    big = Request(cache, ids("x" * 64), namespace="a")
    others = [Request(cache, ids("y" * 36), namespace="b"), Request(cache, ids("z" * 44), namespace="c")]
    assert cache.available_tokens() == 0
    for it in request, big, *others:
        it.verify()
        it.abort()
    cache.check()
