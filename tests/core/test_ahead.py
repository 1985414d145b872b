# SPDX-License-Identifier: Apache-2.0
"""What a thread of the cache's maps and creates before it is needed, and that nobody else can tell."""

import random

from core_ahead import make
from core_fake_cuda import FakeCuda
from core_harness import MakeCache, Memory, Request, counter_changes, ids, ints

from vt_sglang._core import SlotsBusy


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


def test_off_by_default(make_cache: MakeCache) -> None:
    cache = make_cache()
    request = Request(cache, ids("abcdefgh"))
    request.append(ids("ij"))
    cache.finish_ahead()
    assert cache.counters()["pages_mapped_ahead"] == 0
    assert cache.physical_bytes() == cache.usage()["created_pages"] * cache.page_bytes


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


def test_new_pages_are_zero_before_they_can_be_read_as_guards(fake_cuda: FakeCuda) -> None:
    """What new memory holds is not defined on a device."""
    cache = make(fake_cuda, move_pages=False)
    slot = cache.bind(None, 0, 4)[0]
    for tokens in range(5, 33):
        for _ in range(2):  # memory is taken, and the page behind the last is mapped
            cache.grow(ints(slot), ints(tokens))
            cache.finish_ahead()
        cache.grow(ints(slot), ints(tokens), 4)
        assert not Memory(cache).tokens(slot, 0, tokens + 4).any()
    assert cache.counters()["pages_mapped_ahead"] >= 6
    assert "guards_mapped" not in counter_changes(cache, dict.fromkeys(cache.counters(), 0))
    assert fake_cuda.calls("cuMemsetD8Async") == cache.usage()["created_pages"], "each was cleared, and once"
    cache.check()


def test_what_a_request_finds_does_not_depend_on_the_thread(fake_cuda: FakeCuda) -> None:
    """The ranks of a server make the same calls, and must let in, find and evict the same, however late each one's
    thread is. Forwards are completed one step late, as an overlapping scheduler does."""

    def play(delay: int) -> list[object]:
        fake_cuda.reset()
        fake_cuda.delay(delay)
        choice = random.Random(3)
        cache = make(fake_cuda, budget_pages=24)
        seen: list[object] = []
        live: list[Request] = []
        forward = 0

        def bound(text: str) -> Request:
            try:
                return Request(cache, ids(text))
            except SlotsBusy:
                seen.append("busy")
                cache.complete_forward(forward)
                return Request(cache, ids(text))

        with fake_cuda.exempt():
            for turn in range(80):
                if delay == 0:
                    cache.finish_ahead()
                request = bound("system prompt, system"[: choice.randrange(22)] + chr(97 + turn % 3))
                request.append(ids("abcde"[: choice.randrange(1, 6)]))
                seen += [request.matched, cache.deliverable_pages(), cache.available_tokens()]
                seen += [cache.counters()[name] for name in ("nodes_evicted", "tokens_evicted", "creations_failed")]
                request.verify()
                if choice.random() < 0.7:
                    request.record()
                live.append(request)
                before, forward = forward, cache.begin_forward(ints(*(it.slot for it in live)))
                cache.complete_forward(before)
                if len(live) > 3:
                    live.pop(choice.randrange(4)).abort()
            cache.finish_ahead()
            cache.check()
            assert delay > 0 or cache.counters()["pages_mapped_ahead"] > 5
            assert cache.counters()["nodes_evicted"] > 10
            for it in live:
                it.verify()
                it.abort()
        return seen

    at_once = play(0)
    assert play(400) == at_once
    assert play(4000) == at_once
