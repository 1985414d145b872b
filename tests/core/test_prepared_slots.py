# SPDX-License-Identifier: Apache-2.0
"""Prepared slots, once about as many pages are mapped as there are."""

from core_ahead import SYSTEM, make, shared
from core_fake_cuda import FakeCuda
from core_harness import Memory, Request, ids

from vt_sglang._core import KVCache

BUDGET = 34  # pages: less than twice as many are mapped before the slot is prepared, and more after


def branched(cache: KVCache) -> list[Request]:
    """Two live requests of one prefix, for which a third slot is then prepared."""
    live = shared(cache, apart=True)
    cache.finish_ahead()
    mapping = {slot for slot, _ in Memory(cache).mapped_pages()} - {0}
    assert len(mapping - {it.slot for it in live}) == 1, "a slot is prepared"
    return live


def test_another_slot_of_the_prefix_comes_before_it(fake_cuda: FakeCuda) -> None:
    """Else ever more slots would map the same pages for sequences of theirs."""
    cache = make(fake_cuda, budget_pages=BUDGET)
    live = branched(cache)
    for it in live:
        it.append(ids("x" * 15))
        it.finish()
    cache.finish_ahead()
    again = Request(cache, ids(SYSTEM + "c"))
    assert again.slot in {it.slot for it in live}
    again.verify()
    cache.check()
    again.abort()


def test_it_serves_when_all_others_are_in_use(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda, budget_pages=BUDGET)
    live = branched(cache)
    for it in live:
        it.append(ids("x" * 15))
    cache.finish_ahead()
    third = Request(cache, ids(SYSTEM + "c"))
    for it in (*live, third):
        it.verify()
        it.finish()
    cache.finish_ahead()
    cache.check()


def test_its_mappings_are_given_up_like_others(fake_cuda: FakeCuda) -> None:
    """Where the kernel can keep no more of them."""
    cache = make(fake_cuda, budget_pages=BUDGET, mapping_limit=40)
    live = branched(cache)
    for it in live:
        it.append(ids("x" * 15))
        it.finish()
    others = [Request(cache, ids(text * 36), namespace=text) for text in "pq"]
    for it in others:
        it.verify()
        it.abort()
    cache.finish_ahead()
    cache.check()
