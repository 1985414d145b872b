# SPDX-License-Identifier: Apache-2.0
"""A thread of the cache's whose calls fail: what it should have done ahead is simply not there."""

import pytest
from core_ahead import make, started
from core_fake_cuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCuda
from core_harness import counter_changes, ids

from vt_sglang._core import DriverError


@pytest.mark.parametrize("name", ["cuMemMap", "cuMemSetAccess"])
@pytest.mark.parametrize("code", [OUT_OF_MEMORY, ILLEGAL_ADDRESS])
def test_a_mapping_that_fails_is_made_by_who_needs_it(fake_cuda: FakeCuda, name: str, code: int) -> None:
    cache = make(fake_cuda)
    request = started(cache)
    before = cache.counters()
    fake_cuda.fail(name, 0, code)
    request.append(ids("c"))  # what it needs is mapped; the page after that cannot be
    cache.finish_ahead()
    assert "pages_mapped_ahead" not in counter_changes(cache, before)
    assert "pages_mapped" not in counter_changes(cache, before)
    cache.check()
    costs = cache.costs(request.slot)
    request.append(ids("cccd"))
    assert cache.costs(request.slot)["pages_mapped"] == costs["pages_mapped"] + 1
    cache.finish_ahead()
    assert counter_changes(cache, before)["pages_mapped_ahead"] == 1, "the next one is mapped ahead again"
    request.verify()
    cache.check()
    request.abort()


def test_an_error_meets_who_needs_the_page(fake_cuda: FakeCuda) -> None:
    """When it lasts; and then what he has is as it was."""
    cache = make(fake_cuda)
    request = started(cache)
    fake_cuda.fail("cuMemMap")
    request.append(ids("cccc"))
    cache.finish_ahead()
    fake_cuda.fail("cuMemMap")
    with pytest.raises(DriverError, match="cuMemMap"):
        request.append(ids("d"))
    request.ids = request.ids[:-1]
    request.verify()
    cache.check()
    request.append(ids("d"))
    request.verify()
    request.abort()


def test_no_memory_ahead_withholds_nothing(fake_cuda: FakeCuda) -> None:
    """That there is none is known only when a page is really created."""
    cache = make(fake_cuda)
    request = started(cache)
    fake_cuda.limit_memory(0)
    for letter in "cccc":
        request.append(ids(letter))
        cache.finish_ahead()
    usage = cache.usage()
    assert (usage["withheld_pages"], cache.counters()["creations_failed"]) == (0, 0)
    fake_cuda.clear_failures()
    request.append(ids("ddddeeeef"))
    request.verify()
    cache.finish_ahead()
    cache.check()
    request.abort()


def test_a_page_that_cannot_be_cleared_is_not_left_for_a_guard(fake_cuda: FakeCuda) -> None:
    """Whoever needs it maps it again, and clears it."""
    cache = make(fake_cuda)
    request = started(cache)
    fake_cuda.fail("cuMemsetD8Async")
    request.append(ids("cccc"))
    cache.finish_ahead()
    cache.check()
    before = cache.counters()
    request.append(ids("d"))
    assert counter_changes(cache, before)["pages_mapped"] >= 1, "it was unmapped again"
    request.verify()
    cache.finish_ahead()
    cache.check()
    request.abort()
