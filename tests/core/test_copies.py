# SPDX-License-Identifier: Apache-2.0
"""A long prefix that another request holds is copied to where the slot maps pages already, rather than mapped."""

import random
from collections.abc import Callable

import pytest
from core_fake_cuda import FakeCuda
from core_harness import PAGE, Request, counter_changes, ids, ints, ledger, run
from core_plans import Planner

from vt_sglang._core import DriverError, KVCache

TOKEN = 1024  # bytes: four tokens a page
TRUNK = "aaaabbbbccccdddd"  # four pages


@pytest.fixture(params=["host", "cuda"])
def make(request: pytest.FixtureRequest) -> Callable[..., KVCache]:
    """Make a cache that copies two pages or more, on either driver."""

    def make_cache(**sizes: object) -> KVCache:
        sizes = {
            "slots": 4, "slot_tokens": 64, "budget_pages": 40, "move_pages": True, "copy_from_pages": 2
        } | sizes  # fmt: skip
        if request.param == "host":
            return KVCache(driver="host", page_bytes=PAGE, token_bytes=TOKEN, inject_faults=True, **sizes)  # type: ignore[arg-type]
        fake: FakeCuda = request.getfixturevalue("fake_cuda")
        return fake.cache(TOKEN, **sizes)

    return make_cache


def holder(cache: KVCache) -> Request:
    """A request that holds the trunk, beside an idle slot that maps as many free pages."""
    request = Request(cache, ids(TRUNK))
    request.record()
    other = Request(cache, ids("xxxxyyyyzzzzwwww"))
    other.abort()
    return request


def test_a_held_prefix_is_copied_to_free_pages(make: Callable[..., KVCache]) -> None:
    cache = make()
    cache.create_ahead(12, retry=False)
    first = holder(cache)
    held = cache.usage()["held_pages"]
    before = cache.counters()
    second = Request(cache, ids(TRUNK + "e"), spare=8)
    changes = counter_changes(cache, before)
    assert changes["pages_copied"] == 4
    assert (changes["tokens_copied"], second.matched, second.shared) == (16, 16, 0)
    assert changes["pages_mapped"] == 1  # the page behind the prefix, where the slot maps nothing
    assert not {"pages_aliased", "pages_adopted", "pages_moved"} & set(changes)
    assert cache.costs(second.slot)["pages_copied"] == 4
    assert cache.usage()["held_pages"] == held + 5
    assert not set(cache.slot_pages(first.slot)) & set(cache.slot_pages(second.slot))
    second.append(ids("ffff"))
    for it in first, second:
        it.verify()
    cache.check()
    second.finish()
    first.finish()
    cache.check()
    assert cache.usage()["held_pages"] == held + 2  # the copies are free; what came behind the prefix is the tree's
    assert run(cache, ids(TRUNK + "effff")).matched == 21
    assert ledger(cache) == cache.total_tokens


def test_what_was_cached_where_the_copy_goes_is_moved_away(make: Callable[..., KVCache]) -> None:
    cache = make()
    cache.create_ahead(16, retry=False)
    first = Request(cache, ids(TRUNK))
    first.record()
    run(cache, ids("xxxxyyyyzzzzwwww"))
    before = cache.counters()
    second = Request(cache, ids(TRUNK), spare=8)
    changes = counter_changes(cache, before)
    assert (changes["pages_copied"], changes["pages_moved"]) == (4, 4)
    assert not {"driver_calls", "pages_mapped"} & set(changes)
    second.verify()
    second.abort()
    assert run(cache, ids("xxxxyyyyzzzzwwww")).matched == 16
    first.verify()
    cache.check()


@pytest.mark.parametrize(("spare", "copied"), [(0, 0), (3, 0), (4, 2), (7, 3), (100, 4)])
def test_half_of_what_can_be_spared_is_taken(make: Callable[..., KVCache], spare: int, copied: int) -> None:
    """The rest is mapped; and nothing is copied where too little could be."""
    cache = make()
    cache.create_ahead(16, retry=False)
    first = holder(cache)
    before = cache.counters()
    second = Request(cache, ids(TRUNK), spare=spare)
    changes = counter_changes(cache, before)
    assert changes.get("pages_copied", 0) == copied
    assert changes.get("pages_mapped", 0) == second.shared == 4 - copied
    for it in second, first:
        it.verify()
        it.abort()
    cache.check()


@pytest.mark.parametrize(
    "sizes", [{"copy_from_pages": 5}, {"move_pages": False}, {"budget_pages": 8}], ids=["few", "unmoved", "no room"]
)
def test_else_it_is_mapped(make: Callable[..., KVCache], sizes: dict[str, object]) -> None:
    """Where the prefix is short, where contents do not move, and where no page is free beside what is needed: nothing
    is evicted for a copy."""
    cache = make(**sizes)
    cache.create_ahead(16, retry=False)
    first = holder(cache)
    if "budget_pages" in sizes:
        run(cache, ids("ppppqqqqrrrrssss"), "other")  # in the place of what was free
    before = cache.counters()
    second = Request(cache, ids(TRUNK), spare=100)
    changes = counter_changes(cache, before)
    assert "pages_copied" not in changes
    assert "nodes_evicted" not in changes
    assert second.shared == changes["pages_mapped"] == 4
    assert cache.slot_pages(first.slot) == cache.slot_pages(second.slot)
    cache.check()


def test_pages_that_would_have_to_be_created_are_none_to_spare(make: Callable[..., KVCache]) -> None:
    cache = make()
    first = Request(cache, ids(TRUNK))
    first.record()
    run(cache, ids("xxxxyyyyzzzzwwww"))
    cache.create_ahead(3, retry=False)
    before = cache.counters()
    Request(cache, ids(TRUNK), spare=100).verify()
    changes = counter_changes(cache, before)
    assert changes["pages_copied"] == 3  # to where as many went from that were cached
    assert "pages_created" not in changes


def test_a_slot_that_maps_the_prefix_is_better(make: Callable[..., KVCache]) -> None:
    cache = make()
    cache.create_ahead(20, retry=False)
    holders = [Request(cache, ids(TRUNK)) for _ in range(2)]
    holders[0].record()
    holders[1].abort()
    holders.append(Request(cache, ids(TRUNK)))  # mapped
    holders.pop().abort()
    Request(cache, ids("xxxxyyyyzzzzwwww")).abort()
    before = cache.counters()
    again = Request(cache, ids(TRUNK), spare=100)
    assert set(counter_changes(cache, before)) == {
        "binds", "tokens_matched", "tokens_adopted", "pages_aliased", "pages_adopted"
    }  # fmt: skip
    again.verify()


def test_a_slot_to_copy_to_is_looked_for(make: Callable[..., KVCache]) -> None:
    """One that maps nothing would be taken first, if the prefix were not held."""
    cache = make(slots=6, budget_pages=80)
    cache.create_ahead(20, retry=False)
    first = Request(cache, ids(TRUNK))
    first.record()
    run(cache, ids("pppp"))  # is cached, and maps too little
    other = run(cache, ids("xxxxyyyyzzzzwwww"), "other")
    assert Request(cache, ids(TRUNK)).slot not in (first.slot, other.slot)  # nothing to spare: mapped
    copy = Request(cache, ids(TRUNK), spare=100)
    assert copy.slot == other.slot
    assert cache.costs(copy.slot)["pages_copied"] == 4
    copy.verify()
    cache.check()


def test_a_tail_is_extended_or_copied_as_ever(make: Callable[..., KVCache]) -> None:
    for recorded, tail in (TRUNK + "ee", "extended"), (TRUNK + "eef", "copied"):
        cache = make()
        cache.create_ahead(20, retry=False)
        first = Request(cache, ids(TRUNK + "ee"))
        first.finish()
        first = Request(cache, ids(TRUNK))
        first.record()
        if recorded != TRUNK + "ee":
            more = Request(cache, ids(recorded))
            more.finish()
        Request(cache, ids("xxxxyyyyzzzzwwww" + "vvvv"), namespace="other").abort()
        second = Request(cache, ids(TRUNK + "ee" + "gg"), spare=16)
        assert second.tail == tail
        second.verify()
        second.finish()
        first.verify()
        cache.check()
        assert run(cache, ids(TRUNK + "eegg")).matched == 20
        assert run(cache, ids(TRUNK + "ee")).matched == 18


def test_a_copy_that_fails_leaves_no_trace(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache(
        TOKEN, slots=4, slot_tokens=64, budget_pages=40, move_pages=True, copy_from_pages=2
    )  # fmt: skip
    cache.create_ahead(16, retry=False)
    first = holder(cache)
    usage = cache.usage()
    fake_cuda.fail("cuLaunchKernel")
    with pytest.raises(DriverError, match="cuLaunchKernel"):
        Request(cache, ids(TRUNK), spare=100)
    assert cache.usage() == usage
    assert cache.counters()["pages_copied"] == 0
    cache.check()
    second = Request(cache, ids(TRUNK), spare=100)
    assert cache.costs(second.slot)["pages_copied"] == 4
    for it in first, second:
        it.verify()
        it.abort()
    cache.check()


def test_many_pages_are_copied_in_few_launches(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache(TOKEN, slots=4, slot_tokens=2400, budget_pages=2000, move_pages=True)
    cache.create_ahead(1800, retry=False)
    trunk = "a" * 2000  # 500 pages
    first = Request(cache, ids(trunk), write=False)
    first.record()
    Request(cache, ids("b" * 2000), write=False).abort()
    fake_cuda.reset()
    second = Request(cache, ids(trunk), spare=2000, write=False)
    assert cache.costs(second.slot)["pages_copied"] == 500
    assert fake_cuda.calls("cuLaunchKernel") == 4  # of up to 128 pages each
    assert fake_cuda.calls("cuMemMap") == fake_cuda.calls("cuMemUnmap") == 0


def test_decode_reads_one_copy_for_all(make: Callable[..., KVCache]) -> None:
    """Sharing is by what the tokens are, and not by whose pages hold them."""
    cache = make()
    cache.create_ahead(16, retry=False)
    first = holder(cache)
    second = Request(cache, ids(TRUNK + "e"), spare=100)
    first.append(ids("f"))
    assert cache.costs(second.slot)["pages_copied"] == 4
    planner = Planner(cache)
    planner.update([first.slot, second.slot])
    assert planner.plan.facts()["tokens_saved"] == 16


def test_no_page_that_was_copied_is_given_back_before_it_was(fake_cuda: FakeCuda) -> None:
    """A device copies when it comes to it, ahead of the next forward."""
    cache = fake_cuda.cache(TOKEN, slots=4, slot_tokens=64, budget_pages=12, move_pages=True, copy_from_pages=2)
    cache.create_ahead(12, retry=False)
    first = holder(cache)
    second = Request(cache, ids(TRUNK), spare=100)
    pages = set(cache.slot_pages(first.slot)) | set(cache.slot_pages(second.slot))
    for it in first, second:
        it.abort()
    cache.evict(100)
    assert len(pages) == 8
    cache.trim(0, settled=False)
    assert cache.usage()["free_pages"] == 8
    cache.complete_forward(cache.begin_forward(ints()))
    cache.trim(0, settled=False)
    assert cache.usage()["free_pages"] == 0


@pytest.mark.parametrize("map_ahead", [False, True])
def test_copies_amid_everything_else(make: Callable[..., KVCache], map_ahead: bool) -> None:
    """Trunks, requests that join and leave them, evictions: every byte is right at every step."""
    cache = make(slots=9, budget_pages=80, slot_tokens=96, map_ahead=map_ahead)
    draw = random.Random(4)
    trunks = [[1000 * number + token for token in range(40)] for number in range(1, 4)]
    live: list[Request] = []
    for step in range(400):
        if len(live) == 8 or (live and draw.random() < 0.4):
            request = live.pop(draw.randrange(len(live)))
            request.verify()
            request.finish() if draw.random() < 0.7 else request.abort()
        else:
            trunk = draw.choice(trunks)
            text = trunk[: draw.randrange(8, 41)] + [10**6 + 100 * step + token for token in range(draw.randrange(9))]
            request = Request(cache, text, spare=draw.choice([0, 20, 100]))
            request.verify()
            request.record()
            request.append([10**7 + 100 * step + token for token in range(draw.randrange(6))])
            live.append(request)
        if draw.random() < 0.1:
            cache.evict(draw.randrange(40))
        cache.check()
    for request in live:
        request.verify()
    counters = cache.counters()
    assert counters["pages_copied"] > 100
    assert counters["pages_moved"] > 100
    assert counters["pages_aliased"] > 100
