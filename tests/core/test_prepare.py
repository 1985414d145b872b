# SPDX-License-Identifier: Apache-2.0
"""A long prefix is mapped beside other work before a request is bound to it."""

import pytest
from core_ahead import SYSTEM, give_everything_back, make, until
from core_fake_cuda import FakeCuda
from core_harness import Request, counter_changes, ids, run

from vt_sglang._core import InvariantError, KVCache

PAGES = 4
"""Of SYSTEM."""


def held(cache: KVCache, prefix: str = SYSTEM) -> tuple[Request, int]:
    """A live request that holds the prefix, and where that ends in the tree, locked."""
    holder = Request(cache, ids(prefix + "A"))
    holder.record()
    node, matched = cache.match(None, ids(prefix + "B"))
    assert matched == len(prefix)
    cache.lock(node)
    cache.finish_ahead()
    return holder, node


def end(cache: KVCache, *requests: Request) -> None:
    """As each request has it, so it is in memory."""
    for it in requests:
        it.verify()
        it.abort()
    cache.finish_ahead()
    cache.check()


def test_the_bind_finds_it_mapped(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    holder, node = held(cache)
    assert cache.prepare(node, PAGES) > 0
    cache.finish_ahead()
    assert cache.prepare(node, PAGES) == 0
    before = cache.counters()
    second = Request(cache, ids(SYSTEM + "b"))
    changes = counter_changes(cache, before)
    assert changes["tokens_adopted"] == len(SYSTEM)
    assert changes.get("pages_mapped", 0) <= 1, "its own page"
    end(cache, holder, second)


def test_the_bind_may_come_before_that(fake_cuda: FakeCuda) -> None:
    """It makes the calls that are left; and asking again is no second slot."""
    cache = make(fake_cuda)
    holder, node = held(cache)
    fake_cuda.hold("cuMemMap")
    assert cache.prepare(node, PAGES) == PAGES
    until(fake_cuda.waiting)
    assert cache.prepare(node, PAGES) == PAGES
    fake_cuda.let_through(2)
    until(lambda: cache.prepare(node, PAGES) <= PAGES - 2)
    fake_cuda.hold(None)
    second = Request(cache, ids(SYSTEM + "b"))
    end(cache, holder, second)
    assert cache.counters()["pages_mapped_ahead"] <= PAGES + 2


def test_two_that_wait_for_it(fake_cuda: FakeCuda) -> None:
    """The one that comes second has a slot prepared for it, too."""
    cache = make(fake_cuda)
    holder, node = held(cache)
    requests = [holder]
    for letter in "bc":
        assert cache.prepare(node, PAGES) > 0
        cache.finish_ahead()
        assert cache.prepare(node, PAGES) == 0
        requests.append(Request(cache, ids(SYSTEM + letter)))
    end(cache, *requests)


def test_what_is_short_is_mapped_by_the_bind(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    holder, node = held(cache)
    assert cache.prepare(node, PAGES + 1) == 0
    assert cache.prepare(0, 1) == 0
    with pytest.raises(InvariantError, match="no tree node"):
        cache.prepare(10**6, PAGES)
    end(cache, holder)


def test_nothing_to_prepare_where_a_slot_maps_it(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    holder, node = held(cache)
    holder.finish()
    assert cache.prepare(node, 1) == 0
    cache.check()


@pytest.mark.parametrize(
    "sizes", [{"slots": 2}, {"budget_pages": 9}, {"map_ahead": False}], ids=["no slot", "no room", "no thread"]
)
def test_where_it_cannot_be_prepared(fake_cuda: FakeCuda, sizes: dict[str, object]) -> None:
    """No slot is left, or as much is mapped as should be, or nothing is mapped ahead: the request need not wait."""
    cache = make(fake_cuda, **sizes)
    holder, node = held(cache)
    assert cache.prepare(node, PAGES) == 0
    end(cache, holder)


def test_no_prefix_is_mapped_past_half_of_memory(fake_cuda: FakeCuda) -> None:
    """A slot in which the thread has mapped it would not be taken any more."""
    cache = make(fake_cuda)
    trunk = 3 * SYSTEM
    holder, node = held(cache, trunk)
    before = cache.counters()["pages_mapped_ahead"]
    assert cache.prepare(node, 12) == 0, "13 pages are mapped, and 25 would be, of 41"
    end(cache, holder, Request(cache, ids(trunk + "B")))
    assert cache.counters()["pages_mapped_ahead"] <= before + 2, "one behind each request"


def test_what_can_be_copied_is_not_mapped(fake_cuda: FakeCuda) -> None:
    """The bind takes copies then, which is faster."""
    cache = make(fake_cuda, copy_from_pages=2, budget_pages=80)
    run(cache, ids("-" * 32), "before")
    holder, node = held(cache)
    cache.evict(100)
    cache.finish_ahead()
    assert cache.prepare(node, 2, spare_pages=40) == 0
    assert cache.prepare(node, 2, spare_pages=0) > 0
    cache.finish_ahead()
    end(cache, holder)


def test_what_the_thread_cannot_map_is_left_to_the_bind(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    holder, node = held(cache)
    fake_cuda.fail("cuMemMap")
    cache.prepare(node, PAGES)
    cache.finish_ahead()
    assert cache.prepare(node, PAGES) == 0
    fake_cuda.clear_failures()
    second = Request(cache, ids(SYSTEM + "b"))
    end(cache, holder, second)


@pytest.mark.parametrize("waits", [True, False])
def test_it_pins_nothing(fake_cuda: FakeCuda, waits: bool) -> None:
    """The request may end while it waits, and the prefix be evicted, while it is mapped or after that."""
    cache = make(fake_cuda)
    holder, node = held(cache)
    fake_cuda.hold("cuMemMap" if waits else None)
    assert cache.prepare(node, PAGES) > 0
    if waits:
        until(fake_cuda.waiting)
        fake_cuda.hold(None)
    else:
        cache.finish_ahead()
    cache.unlock(node)
    holder.abort()
    give_everything_back(cache)
    run(cache, ids(SYSTEM + "c"))
