# SPDX-License-Identifier: Apache-2.0
"""Which free page is taken: where it has to be mapped, one that nothing maps, so that others stay where they are."""

from core_fake_cuda import FakeCuda
from core_harness import Request, counter_changes, ids

from vt_sglang._core import KVCache


def make(fake_cuda: FakeCuda) -> KVCache:
    return fake_cuda.cache(1024, slots=3, slot_tokens=64, budget_pages=40, move_pages=True)  # four tokens a page


def test_a_page_that_is_mapped_waits_for_its_slot(fake_cuda: FakeCuda) -> None:
    """It has been free for longest, and is passed over for one that was never mapped."""
    cache = make(fake_cuda)
    first, second = Request(cache, ids("aaaa")), Request(cache, ids("bbbb"))
    first.abort()
    cache.create_ahead(3)
    second.append(ids("bbbb"))
    before = cache.counters()
    third = Request(cache, ids("cccc"))
    assert third.slot == first.slot
    changes = counter_changes(cache, before)
    assert changes["pages_reused"] == 1
    assert "driver_calls" not in changes
    for it in second, third:
        it.verify()
        it.abort()
    cache.check()


def test_all_of_the_budget_can_be_had_however_it_was_mapped(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    Request(cache, ids("a" * 60)).abort()
    Request(cache, ids("b" * 60)).abort()
    requests = [Request(cache, ids("c" * 60)), Request(cache, ids("d" * 64))]
    for it in requests:
        it.verify()
        it.abort()
    cache.check()
