# SPDX-License-Identifier: Apache-2.0
"""Memory taken ahead, and pages mapped ahead, when memory is short: by a trim, a limit, the budget or the mappings that
there may be."""

from core_ahead import Waiter, make, started, until
from core_fake_cuda import FakeCuda
from core_harness import PAGE, Request, counter_changes, ids, ints, run


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


def test_a_trim_cancels_what_waits(fake_cuda: FakeCuda) -> None:
    """The thread is held up in taking memory, and more is to be taken: the trim waits for that one call, and afterwards
    no memory is there but that of pages which somebody holds."""
    cache = make(fake_cuda)
    requests = [started(cache, name) for name in "abc"]
    fake_cuda.hold("cuMemCreate")
    requests[0].append(ids("c"))
    until(fake_cuda.waiting)
    waiter = Waiter(cache.trim)
    waiter.end(fake_cuda.let_through)  # a second call would wait
    assert not fake_cuda.waiting()
    fake_cuda.hold(None)
    cache.finish_ahead()
    assert cache.physical_bytes() == cache.usage()["created_pages"] * PAGE
    assert cache.usage()["created_pages"] == cache.usage()["held_pages"]
    cache.check()
    for it in requests:
        it.append(ids("ccccd"))
        it.verify()
        it.abort()


def test_a_lower_limit_while_jobs_wait(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    requests = [started(cache, name) for name in "abcd"]
    fake_cuda.hold("cuMemSetAccess")
    requests[0].append(ids("c"))
    until(fake_cuda.waiting)
    waiter = Waiter(lambda: cache.set_limit(10))  # 10 pages are held, with the padding
    waiter.end(lambda: fake_cuda.hold(None))
    cache.complete_forward(cache.begin_forward(ints()))  # ahead of which new pages were cleared
    for _ in range(10):
        cache.shrink(2)
    cache.finish_ahead()
    assert cache.physical_bytes() <= 11 * PAGE
    cache.check()
    requests[1].append(ids("c"))
    cache.finish_ahead()
    assert cache.physical_bytes() <= 11 * PAGE
    cache.set_limit(40)
    for it in requests:
        it.append(ids("ccccd"))
        it.verify()
        it.abort()
    cache.check()


def test_memory_full_of_cached_pages_is_left_alone(fake_cuda: FakeCuda) -> None:
    """Nothing is evicted for what may never be needed."""
    cache = make(fake_cuda, budget_pages=8)
    run(cache, ids("abcdefgh"))
    run(cache, ids("ijklmnopqrst"))
    request = Request(cache, ids("zyxw"))
    for letter in "vutsrqp":
        request.append(ids(letter))
        cache.finish_ahead()
        cache.check()
    before = cache.counters()
    request.append(ids("onml"))  # needs a page, and evicts the oldest node
    cache.finish_ahead()
    changes = counter_changes(cache, before)
    assert changes["nodes_evicted"] == 1
    assert cache.match(None, ids("ijklmnopqrst"))[1] == 12
    request.verify()
    request.abort()


def test_what_is_to_be_mapped_counts_for_the_mapping_limit(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda, mapping_limit=14)
    requests = [Request(cache, ids("abcd"), namespace=name) for name in "xy"]
    for _ in range(6):
        for it in requests:
            it.append(ids("ef"))
            assert cache.usage()["mapping_runs"] <= 14
        cache.finish_ahead()
        assert cache.usage()["mapping_runs"] <= 14
        cache.check()
    for it in requests:
        it.verify()
        it.abort()
