# SPDX-License-Identifier: Apache-2.0
"""A cache without memory does with pages, mappings and tree what one with memory does."""

import random
from array import array

import pytest
from core_harness import PAGE, ids

from vt_sglang._core import KVCache


def run(driver: str) -> tuple[list[tuple[int, str, int, int]], dict[str, int], dict[str, int]]:
    """Two hundred random requests, some of which go on from earlier ones, in a cache too small for them."""
    source = random.Random(5)
    cache = KVCache(driver=driver, page_bytes=PAGE, token_bytes=1000, slots=5, slot_tokens=256, budget_pages=64)
    bound, known = [], [array("q")]
    for _ in range(200):
        base = source.choice(known)
        prompt = base[: source.randrange(len(base) + 1)] + array("q", (source.randrange(9) for _ in range(30)))
        prompt = prompt[:200]
        node, _ = cache.match(None, prompt, len(prompt) - 1)
        cache.lock(node)
        bound.append(cache.bind(None, node, len(prompt)))
        cache.record(bound[-1][0], prompt)
        cache.release(bound[-1][0])
        cache.unlock(node)
        known.append(prompt)
        cache.check()
    counters = cache.counters()
    return (
        bound,
        {name: value for name, value in counters.items() if name not in ("driver_ns", "driver_wait_ns")},
        dict(cache.usage()),
    )


def test_it_decides_as_with_memory() -> None:
    simulated, real = run("none"), run("host")
    assert simulated == real
    assert real[1]["tokens_evicted"] > 0
    assert real[1]["tails_copied"] > 0


def test_any_capacity() -> None:
    """A terabyte of pages, of a size that no driver has."""
    cache = KVCache(
        driver="none", page_bytes=1000, token_bytes=100, slots=2, slot_tokens=10**7, budget_pages=10**6, mapping_limit=0
    )
    tokens = array("q", range(1_000_000))
    slot = cache.bind(None, 0, len(tokens))[0]
    cache.record(slot, tokens)
    cache.release(slot)
    assert cache.match(None, tokens)[1] == len(tokens)
    assert cache.physical_bytes() == 0
    cache.check()


def test_there_is_nothing_to_look_at() -> None:
    cache = KVCache(driver="none", page_bytes=PAGE, token_bytes=64, slots=2, slot_tokens=64, budget_pages=4)
    assert cache.driver == "none"
    with pytest.raises(ValueError, match="has no memory"):
        cache.tensor(0, [1], [1], "uint8")


def test_pages_need_a_size() -> None:
    with pytest.raises(ValueError, match="page_bytes"):
        KVCache(driver="none", page_bytes=0, token_bytes=64, slots=2, slot_tokens=64, budget_pages=4)


def test_driver_calls_are_counted_and_timed() -> None:
    cache = KVCache(driver="host", page_bytes=PAGE, token_bytes=1024, slots=3, slot_tokens=64, budget_pages=8)
    before = cache.counters()
    slot = cache.bind(None, 0, 12)[0]  # three pages are created and mapped
    after = cache.counters()
    assert after["driver_calls"] - before["driver_calls"] == 6
    assert 0 < after["driver_ns"] - before["driver_ns"] < 10**10
    cache.release(slot)
    cache.bind(None, 0, 12)
    assert cache.counters()["driver_calls"] == after["driver_calls"], "the same pages where they are mapped"


def test_where_matched_tokens_were_found() -> None:
    """Four tokens a page, 10 recorded: two pages and a tail."""
    cache = KVCache(driver="host", page_bytes=PAGE, token_bytes=1024, slots=4, slot_tokens=64, budget_pages=16)
    prompt = ids("abcdefghij")

    def sources() -> tuple[int, ...]:
        now = cache.counters()
        assert now["tokens_matched"] == now["tokens_adopted"] + now["tokens_aliased"] + now["tokens_copied"]
        return now["tokens_adopted"], now["tokens_aliased"], now["tokens_copied"]

    first = cache.bind(None, 0, 10)[0]
    cache.record(first, prompt)
    assert sources() == (0, 0, 0)
    node = cache.match(None, prompt)[0]
    cache.lock(node)
    cache.bind(None, node, 12)  # another slot: it maps two pages, and copies what the first goes on writing
    assert sources() == (0, 8, 2)
    cache.release(first)
    assert cache.bind(None, node, 12)[0] == first  # all of it is mapped there, tail included
    assert sources() == (10, 8, 2)
