# SPDX-License-Identifier: Apache-2.0
"""Slots in which a prefix that several requests share is mapped before the next one comes."""

import pytest
from core_ahead import SYSTEM, give_everything_back, make, pair, shared, until
from core_fake_cuda import FakeCuda
from core_harness import Request, counter_changes, ids, run


def test_a_prefix_that_branches_is_mapped_in_a_spare_slot(fake_cuda: FakeCuda) -> None:
    """Two live requests share it; the third finds it mapped where nothing was."""
    cache = make(fake_cuda)
    requests = shared(cache)
    cache.finish_ahead()
    before = cache.counters()
    requests.append(Request(cache, ids(SYSTEM + "c")))
    changes = counter_changes(cache, before)
    assert changes["tokens_adopted"] == changes["tokens_matched"] == 16
    for it in requests:
        it.verify()
        it.abort()
    cache.check()


def test_a_prepared_slot_can_be_had_before_it_is_ready(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    requests = pair(cache)
    cache.finish_ahead()
    fake_cuda.hold("cuMemMap")
    requests[1].record()
    until(fake_cuda.waiting)
    fake_cuda.hold(None)
    requests.append(Request(cache, ids(SYSTEM + "c")))
    for it in requests:
        it.verify()
        it.abort()
    cache.finish_ahead()
    cache.check()


@pytest.mark.parametrize("held", [True, False])
def test_a_prepared_slot_pins_nothing(fake_cuda: FakeCuda, held: bool) -> None:
    """Its path can be evicted, before it is mapped or after that, and its pages given back."""
    cache = make(fake_cuda)
    requests = pair(cache, apart=True)
    cache.finish_ahead()
    fake_cuda.hold("cuMemMap" if held else None)
    requests[1].record()
    if held:
        until(fake_cuda.waiting)
        fake_cuda.hold(None)
    else:
        cache.finish_ahead()
        assert cache.counters()["pages_mapped_ahead"] >= 4
    for it in requests:
        it.abort()
    usage = cache.usage()
    assert usage["evictable_pages"] == usage["held_pages"] - 1
    give_everything_back(cache)
    run(cache, ids(SYSTEM + "c"))


def test_the_only_idle_slot_serves_any_request(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda, slots=4)
    requests = shared(cache)
    cache.finish_ahead()
    assert cache.idle_slots() == 1
    requests.append(Request(cache, ids("something else")))
    cache.finish_ahead()
    cache.check()
    for it in requests:
        it.verify()
        it.abort()


def test_a_conversation_of_one_has_no_prepared_slot(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    text = SYSTEM
    for _ in range(4):
        before = cache.counters()
        run(cache, ids(text))
        cache.finish_ahead()
        assert counter_changes(cache, before).get("pages_mapped_ahead", 0) == 0
        text += "stuvwxyz"
