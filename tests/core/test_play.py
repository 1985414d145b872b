# SPDX-License-Identifier: Apache-2.0
"""A request played in one call leaves the cache as the calls of a server leave it."""

import random
from array import array

import numpy as np
import pytest

from vt_sglang._core import KVCache, OutOfPages


def _cache(budget: int = 200) -> KVCache:
    return KVCache(driver="none", page_bytes=4096, token_bytes=512, slots=3, slot_tokens=600, budget_pages=budget)


def _by_calls(core: KVCache, tokens: "array[int]", prompt: int, limit: int, chunk: int) -> int:
    node, matched = core.match(None, tokens, limit, len(tokens))
    core.lock(node)
    end = min(matched + chunk, prompt)
    slot = core.bind(None, node, end)[0]
    while True:
        recorded, duplicate, _ = core.record(slot, tokens, end)
        if end == len(tokens):
            break
        if not duplicate:
            core.lock(recorded)
            core.unlock(node)
            node = recorded
        end = min(end + chunk, prompt) if end < prompt else len(tokens)
        core.grow(np.array([slot]), np.array([end]))
    core.release(slot)
    core.unlock(node)
    return matched


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_the_calls_do(seed: int) -> None:
    draw = random.Random(seed)
    one, other = _cache(), _cache()
    known: list[list[int]] = [[]]
    for _ in range(150):
        base = draw.choice(known)
        tokens = base[: draw.randrange(len(base) + 1)] + [draw.randrange(50) for _ in range(draw.randint(1, 60))]
        tokens = tokens[-500:]
        known.append(tokens)
        prompt = draw.randint(1, len(tokens))
        limit, chunk = draw.randint(0, prompt), draw.choice([1, 7, 100])
        ids = array("q", tokens)
        assert one.play(None, ids, len(ids), prompt, limit, chunk) == _by_calls(other, ids, prompt, limit, chunk)
        one.check()
    assert one.usage() == other.usage()
    assert one.counters() == other.counters()


@pytest.mark.parametrize(("prompt", "limit", "chunk"), [(0, 0, 8), (11, 5, 8), (5, 6, 8), (5, 5, 0)])
def test_numbers_that_cannot_be(prompt: int, limit: int, chunk: int) -> None:
    core = _cache()
    with pytest.raises(ValueError, match="1 to 10 tokens of prompt"):
        core.play(None, array("q", range(10)), 10, prompt, limit, chunk)
    assert core.counters()["binds"] == 0


def test_more_than_there_is() -> None:
    with pytest.raises(OutOfPages):
        _cache(budget=4).play(None, array("q", range(400)), 400, 400, 400, 400)
