# SPDX-License-Identifier: Apache-2.0
"""Contents of pages move, so that mappings can stay."""

import random
from collections.abc import Callable

import pytest
from core_fake_cuda import FakeCuda
from core_harness import PAGE, Request, counter_changes, ids, ints, run

from vt_sglang._core import DriverError, KVCache

TOKEN = 1024  # bytes: four tokens a page


@pytest.fixture(params=["host", "cuda"])
def make(request: pytest.FixtureRequest) -> Callable[..., KVCache]:
    """Make a cache whose contents move, on either driver."""

    def make_cache(**sizes: object) -> KVCache:
        sizes = {"slots": 3, "slot_tokens": 64, "budget_pages": 8, "move_pages": True} | sizes
        if request.param == "host":
            return KVCache(driver="host", page_bytes=PAGE, token_bytes=TOKEN, inject_faults=True, **sizes)  # type: ignore[arg-type]
        fake: FakeCuda = request.getfixturevalue("fake_cuda")
        return fake.cache(TOKEN, **sizes)

    return make_cache


def test_a_slot_keeps_its_pages_and_what_was_cached_there_goes_elsewhere(make: Callable[..., KVCache]) -> None:
    """The one slot maps a conversation that stays cached, as there is room for both."""
    cache = make(slots=2)
    run(cache, ids("aaaabbbb"))
    spare = Request(cache, ids("xxxxyyyy"))
    spare.verify()
    spare.abort()  # its two pages are free, and mapped where the first conversation's are not
    before = cache.counters()
    request = Request(cache, ids("ccccdddd"))
    changes = counter_changes(cache, before)
    assert not {"driver_calls", "pages_mapped"} & set(changes), changes
    request.verify()
    request.abort()
    assert cache.match(None, ids("aaaabbbb"))[1] == 8
    again = run(cache, ids("aaaabbbb"))
    assert again.matched == 8
    cache.check()


def test_growth_takes_the_page_that_is_mapped_there(make: Callable[..., KVCache]) -> None:
    cache = make(slots=2)
    run(cache, ids("aaaabbbbcccc"))  # three pages
    cache.create_ahead(3, retry=False)
    request = Request(cache, ids("xxxx"))
    before = cache.counters()
    request.append(ids("yyyy"))
    changes = counter_changes(cache, before)
    assert changes["pages_moved"] == 1
    assert not {"driver_calls", "pages_reused"} & set(changes), changes
    request.verify()
    request.abort()
    assert run(cache, ids("aaaabbbbcccc")).matched == 12
    cache.check()


def test_a_returning_conversation_comes_to_the_pages_that_its_slot_maps(make: Callable[..., KVCache]) -> None:
    """Two conversations by turns in one slot: whole pages change places, and nothing is mapped."""
    cache = make(slots=2, budget_pages=5)
    run(cache, ids("aaaabbbbc"))
    run(cache, ids("xxxxyyyy"))
    before = cache.counters()
    for text in ("aaaabbbbc", "xxxxyyyy") * 3:
        request = Request(cache, ids(text))
        assert request.matched == len(text)
        request.verify()
        request.abort()
        cache.check()
    changes = counter_changes(cache, before)
    assert not {"driver_calls", "pages_mapped"} & set(changes), changes
    assert (changes["tokens_copied"], changes["tokens_adopted"]) == (48, 3)  # the other one has no third page
    assert changes["pages_moved"] >= 12


def test_what_a_request_uses_stays_where_it_is(make: Callable[..., KVCache]) -> None:
    """It is aliased, as ever: the live request's mapping cannot change."""
    cache = make()
    live = Request(cache, ids("aaaabbbb"))
    live.record()
    old = Request(cache, ids("xxxxyyyy"))
    old.abort()
    pages = cache.slot_pages(live.slot)
    before = cache.counters()
    other = Request(cache, ids("aaaabbbb"))
    assert counter_changes(cache, before)["pages_mapped"] == 2
    assert cache.slot_pages(live.slot) == cache.slot_pages(other.slot) == pages
    for it in live, other:
        it.verify()
        it.abort()
    cache.check()


def test_what_another_idle_slot_maps_stays_where_it_is(make: Callable[..., KVCache]) -> None:
    """Its next turn is to find it there."""
    cache = make(budget_pages=20)
    run(cache, ids("aaaabbbbcccc"))
    live = Request(cache, ids("aaaaXXXX"))  # takes the first slot; its second page moves one away
    run(cache, ids("aaaabbbbccccdddd"))  # in the other slot
    live.finish()
    before = cache.counters()
    again = Request(cache, ids("aaaabbbbccccdddd"))
    assert again.matched == 16
    assert set(counter_changes(cache, before)) <= {
        "binds", "tokens_matched", "tokens_adopted", "pages_aliased", "pages_adopted"
    }  # fmt: skip
    again.verify()
    again.abort()
    cache.check()


def test_a_partly_filled_page_that_two_turns_hold_moves_with_both(make: Callable[..., KVCache]) -> None:
    """The page in which one turn ends and the next begins is held by both nodes."""
    cache = make(slots=2, budget_pages=8)
    run(cache, ids("aaaabb"))
    run(cache, ids("aaaabbcc" + "d"))
    run(cache, ids("xxxxyyyyz"))  # in their place
    for text in ("aaaabb", "aaaabbccd", "xxxxyyyyz", "aaaabbccd"):
        assert run(cache, ids(text)).matched == len(text)
        cache.check()
    cache.evict(100)
    assert cache.usage()["held_pages"] == 1
    cache.check()


def test_a_move_that_fails_leaves_no_trace(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache(TOKEN, slots=2, slot_tokens=64, budget_pages=6, move_pages=True)
    run(cache, ids("aaaabbbb"))
    run(cache, ids("xxxxyyyy"))
    cache.create_ahead(2, retry=False)
    usage = cache.usage()
    fake_cuda.fail("cuLaunchKernel")
    with pytest.raises(DriverError, match="cuLaunchKernel"):
        Request(cache, ids("aaaabbbbcccc"))
    assert cache.usage() == usage
    cache.check()
    run(cache, ids("aaaabbbbcccc"))
    run(cache, ids("xxxxyyyy"))


def test_many_pages_move_in_few_launches(fake_cuda: FakeCuda) -> None:
    cache = fake_cuda.cache(TOKEN, slots=2, slot_tokens=2000, budget_pages=800, move_pages=True)
    first, second = "a" * 1200, "b" * 1200
    run(cache, ids(first))
    run(cache, ids(second))
    fake_cuda.reset()
    assert run(cache, ids(first)).matched == 1200
    assert fake_cuda.calls("cuLaunchKernel") == 3  # of up to 128 pages each
    assert fake_cuda.calls("cuMemMap") == fake_cuda.calls("cuMemUnmap") == 0


def test_a_page_that_was_set_to_move_is_not_given_back_before_it_has(fake_cuda: FakeCuda) -> None:
    """A device moves it when it comes to it, ahead of the next forward."""
    cache = fake_cuda.cache(TOKEN, slots=2, slot_tokens=64, budget_pages=5, move_pages=True)
    run(cache, ids("aaaabbbb"))
    run(cache, ids("xxxxyyyy"))
    request = Request(cache, ids("aaaabbbb"))
    request.abort()
    cache.evict(100)
    kept = cache.usage()["free_pages"]
    assert cache.trim(0, settled=False) < kept
    forward = cache.begin_forward(ints())
    cache.complete_forward(forward)
    cache.trim(0, settled=False)
    assert cache.usage()["free_pages"] == 0


def test_nor_above_a_limit_unless_all_is_done(fake_cuda: FakeCuda) -> None:
    """Where nothing runs, no forward comes that it would have to be ahead of."""
    cache = fake_cuda.cache(TOKEN, slots=2, slot_tokens=64, budget_pages=5, move_pages=True)
    run(cache, ids("aaaabbbb"))
    run(cache, ids("xxxxyyyy"))
    Request(cache, ids("aaaabbbb")).abort()
    cache.set_limit(1)
    cache.shrink(1000)
    assert cache.usage()["created_pages"] > 2
    cache.shrink(1000, settled=True)
    assert cache.usage()["created_pages"] == 2


@pytest.mark.parametrize("slots", [5, 12])
def test_the_steady_state_maps_nothing(slots: int) -> None:
    """Conversations of several turns under one system prompt, four at a time, with memory for a third of them: once
    every slot has been as long as it gets, no page is mapped or unmapped any more."""
    cache = KVCache(
        driver="none",
        page_bytes=PAGE,
        token_bytes=TOKEN,
        slots=slots,
        slot_tokens=128,
        budget_pages=240,
        move_pages=True,
    )
    draw = random.Random(0)
    system = ids("system prompt of all")
    token = 1000

    def more() -> list[int]:
        nonlocal token
        token += 1
        return [token] * draw.randrange(4, 12)

    def turn(text: list[int]) -> list[int]:
        request = Request(cache, text, write=False)
        request.record()
        text = text + more()
        cache.grow(ints(request.slot), ints(len(text)))
        request.ids.extend(text[len(request.ids) :])
        request.finish()
        return text

    mapped = []
    for _ in range(12):
        before = cache.counters()
        talks = [list(system) for _ in range(30)]
        for start in range(0, len(talks), 4):
            for _ in range(5):
                for i in range(start, min(start + 4, len(talks))):
                    talks[i] = turn(talks[i] + more())
        cache.check()
        after = cache.counters()
        mapped.append(after["pages_mapped"] - before["pages_mapped"])
        assert after["pages_unmapped"] - before["pages_unmapped"] <= mapped[-1]
    assert cache.counters()["nodes_evicted"] > 500
    assert sum(mapped[-4:]) <= 4, mapped
