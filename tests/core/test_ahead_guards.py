# SPDX-License-Identifier: Apache-2.0
"""Where the padding page was mapped so that a kernel could read behind a prompt, growth finds a page of its own too."""

import pytest
from core_ahead import make, until
from core_fake_cuda import OUT_OF_MEMORY, FakeCuda
from core_harness import Memory, Request, counter_changes, ids, ints

from vt_sglang._core import KVCache

GUARD = 10  # tokens; four are a page


def prefilled(cache: KVCache, text: str) -> Request:
    """A request whose prompt was computed by a kernel that reads guards; and there is memory for its next page."""
    request = Request(cache, ids(text))
    cache.grow(ints(request.slot), ints(len(text)), GUARD)
    cache.complete_forward(cache.begin_forward(ints(request.slot), reads_guards=True))
    cache.finish_ahead()
    return request


def guards(cache: KVCache, slot: int) -> list[int]:
    """Page indices where a slot maps the padding page."""
    mapped = Memory(cache).mapped_pages()
    return [index for (owner, index), page in mapped.items() if owner == slot and page == mapped[0, 0]]


def step(cache: KVCache, request: Request, text: str) -> dict[str, int]:
    """Generate tokens, and let the thread come to rest. Returns what the growth changed."""
    before = cache.counters()
    request.append(ids(text))
    changes = counter_changes(cache, before)
    cache.complete_forward(cache.begin_forward(ints(request.slot)))
    cache.finish_ahead()
    return changes


def test_growth_over_guards_makes_no_call(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    request = prefilled(cache, "aaa")
    assert guards(cache, request.slot) == [1, 2, 3]
    step(cache, request, "b")  # nobody reads guards: from now on they may go
    assert guards(cache, request.slot) == [2, 3]
    for text in "bcde":
        assert "pages_mapped" not in step(cache, request, text * 4)
    assert cache.counters()["pages_mapped_ahead"] >= 5
    request.verify()
    cache.check()
    request.abort()


def test_guards_stay_while_they_are_read(fake_cuda: FakeCuda) -> None:
    cache = make(fake_cuda)
    request = prefilled(cache, "aaa")
    forward = cache.begin_forward(ints(request.slot), reads_guards=True)
    request.append(ids("b"))
    cache.finish_ahead()
    assert guards(cache, request.slot) == [1, 2, 3]
    cache.complete_forward(forward)
    cache.grow(ints(request.slot), ints(4), GUARD)
    cache.finish_ahead()
    assert guards(cache, request.slot) == [1, 2, 3], "the next forward is to read them"
    cache.grow(ints(request.slot), ints(4))
    cache.finish_ahead()
    assert guards(cache, request.slot) == [2, 3]
    request.abort()


def test_a_forward_that_reads_guards_keeps_them(fake_cuda: FakeCuda) -> None:
    """What waits to take their place is cancelled."""
    cache = make(fake_cuda)
    request, other = prefilled(cache, "aaa"), prefilled(cache, "xxxx")
    cache.create_ahead(8)  # to create a page is a call, and would wait for the one that is held
    fake_cuda.hold("cuMemUnmap")
    cache.grow(ints(other.slot), ints(4))  # the thread stands in this one's call
    until(fake_cuda.waiting)
    cache.grow(ints(request.slot), ints(3))  # and this one's waits
    forward = cache.begin_forward(ints(request.slot), reads_guards=True)
    fake_cuda.hold(None)
    cache.finish_ahead()
    assert guards(cache, other.slot) == [2, 3]
    assert guards(cache, request.slot) == [1, 2, 3]
    cache.complete_forward(forward)
    cache.check()
    for it in request, other:
        it.verify()
        it.abort()


@pytest.mark.parametrize("call", ["cuMemUnmap", "cuMemMap", "cuMemSetAccess"])
def test_a_guard_that_could_not_be_replaced(fake_cuda: FakeCuda, call: str) -> None:
    """It is gone, or still there; either way the next prefill has guards, and growth its page."""
    cache = make(fake_cuda)
    request = prefilled(cache, "aaa")
    fake_cuda.fail(call, 0, OUT_OF_MEMORY)
    before = cache.counters()
    cache.grow(ints(request.slot), ints(3))
    cache.finish_ahead()
    assert "pages_mapped_ahead" not in counter_changes(cache, before)
    assert guards(cache, request.slot)[-2:] == [2, 3]
    cache.check()
    cache.grow(ints(request.slot), ints(3), GUARD)
    assert Memory(cache).accessible(request.slot, 3 + GUARD)
    request.append(ids("bbbbb"))
    request.verify()
    cache.check()
    request.abort()
