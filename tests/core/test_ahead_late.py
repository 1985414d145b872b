# SPDX-License-Identifier: Apache-2.0
"""A thread of the cache's that is late: held up in the driver, with jobs that wait behind that call."""

import gc

from core_ahead import LONG_ENOUGH_S, Waiter, make, make_full, started, until
from core_fake_cuda import FakeCuda
from core_harness import Request, counter_changes, ids, ints


def hold_up(fake_cuda: FakeCuda, request: Request) -> None:
    """Let a started request take the page mapped for it. The next is to be mapped ahead, and the thread is held up in
    the midst of that."""
    fake_cuda.hold("cuMemSetAccess")
    request.append(ids("c"))
    until(fake_cuda.waiting)


def test_a_growth_waits_for_the_call_under_way(fake_cuda: FakeCuda) -> None:
    """For the very page that it needs; and then it has it."""
    cache = make(fake_cuda)
    request = started(cache)
    hold_up(fake_cuda, request)
    before = cache.counters()
    waiter = Waiter(lambda: request.append(ids("cccd")))
    waiter.end(lambda: fake_cuda.hold(None))
    changes = counter_changes(cache, before)
    assert changes["driver_wait_ns"] > LONG_ENOUGH_S / 2 * 1e9
    assert changes["pages_reused"] == changes["pages_mapped_ahead"] == 1
    request.verify()
    cache.finish_ahead()
    assert cache.costs(request.slot)["pages_mapped"] == 2, "the first two"
    cache.check()
    request.abort()


def test_what_needs_no_call_does_not_wait(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    request = started(cache)
    hold_up(fake_cuda, request)
    before = cache.counters()
    request.append(ids("cc"))
    assert cache.usage()["live_slots"] == 1
    assert cache.match(None, ids("aaaa")) == (0, 0)
    cache.complete_forward(cache.begin_forward(ints(request.slot)))
    assert fake_cuda.waiting()
    assert "driver_wait_ns" not in counter_changes(cache, before)
    fake_cuda.hold(None)
    request.verify()
    request.abort()


def test_what_waits_is_done_by_who_needs_it(fake_cuda: FakeCuda) -> None:
    """What a growth needs stands behind the job of another request: it waits for that one call, cancels its own job,
    and makes the call itself."""
    cache, occupant = make_full(fake_cuda)
    request, other = started(cache), started(cache, "other")
    hold_up(fake_cuda, other)
    request.append(ids("c"))  # takes what is mapped; the next page waits to be mapped ahead
    before, costs = cache.counters(), cache.costs(request.slot)
    waiter = Waiter(lambda: request.append(ids("cccd")))
    waiter.end(lambda: fake_cuda.hold(None))
    assert cache.costs(request.slot)["pages_mapped"] - costs["pages_mapped"] == 1, "it mapped the page itself"
    assert counter_changes(cache, before)["driver_wait_ns"] > LONG_ENOUGH_S / 2 * 1e9
    request.verify()
    cache.finish_ahead()
    cache.check()
    other.append(ids("cccd"))
    for it in request, other, occupant:
        it.verify()
        it.abort()


def test_a_caller_comes_before_the_next_job(fake_cuda: FakeCuda) -> None:
    """Of the jobs that wait, none begins before the caller that waits had its call."""
    cache, occupant = make_full(fake_cuda)
    requests = [started(cache, name) for name in "abc"]
    hold_up(fake_cuda, requests[0])
    for it in requests[1:]:
        it.append(ids("c"))
    calls = fake_cuda.calls("cuMemSetAccess")

    def grow() -> None:
        with fake_cuda.exempt():
            requests[2].append(ids("cccd"))

    waiter = Waiter(grow)
    waiter.end(fake_cuda.let_through)  # the next job's call is held again
    until(fake_cuda.waiting)
    assert fake_cuda.calls("cuMemSetAccess") == calls + 2, "that of the growth, and that of the next job"
    fake_cuda.hold(None)
    cache.finish_ahead()
    cache.check()
    for it in [*requests, occupant]:
        it.verify()
        it.abort()


def test_a_request_ends_while_its_page_is_being_mapped(fake_cuda: FakeCuda) -> None:
    """Another takes the slot, waits for that call, and everything is right in the end."""
    cache = make(fake_cuda, slots=2)
    request = started(cache)
    hold_up(fake_cuda, request)
    request.abort()
    made: list[Request] = []
    waiter = Waiter(lambda: made.append(Request(cache, ids("x" * 20))))
    waiter.end(lambda: fake_cuda.hold(None))
    cache.finish_ahead()
    cache.check()
    made[0].verify()
    made[0].abort()


def test_a_cache_goes_while_its_thread_is_busy_and_jobs_wait(fake_cuda: FakeCuda) -> None:
    """It waits for the call under way, begins no other job, and leaves nothing behind."""
    cache, occupant = make_full(fake_cuda)
    requests = [started(cache, name) for name in "abc"]
    hold_up(fake_cuda, requests[0])
    for it in requests[1:]:
        it.append(ids("c"))
    calls = fake_cuda.calls("cuMemMap")
    caches = [cache]
    del cache, it, occupant
    requests.clear()
    gc.collect()
    waiter = Waiter(caches.clear)
    waiter.end(lambda: fake_cuda.hold(None))
    assert fake_cuda.calls("cuMemMap") == calls
