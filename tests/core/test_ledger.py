# SPDX-License-Identifier: Apache-2.0
"""The ledger in tokens: available + evictable + protected + what live requests hold besides is the total, always."""

import pytest
from core_harness import Geometry, MakeCache, Request, ids, ledger, run

from vt_sglang._core import KVCache


def test_the_ledger_over_a_request(make_cache: MakeCache, geometry: Geometry) -> None:
    """Every step of two requests that share a prefix, counted as an engine counts."""
    cache = make_cache(geometry.token_bytes)
    total = cache.total_tokens
    assert total == geometry.tokens_in(32)
    assert ledger(cache) == total
    run(cache, ids("prefix"))
    assert ledger(cache) == total
    first = Request(cache, ids("prefix one"), room=3)
    second = Request(cache, ids("prefix two"))
    assert ledger(cache) == total - 7 - 4
    first.record(8)
    assert ledger(cache) == total - 5 - 4
    second.append(ids("!"))
    assert ledger(cache) == total - 5 - 5
    cache.evict(100)
    assert ledger(cache) == total - 5 - 5, "evicting moves tokens between the terms"
    second.finish()
    assert ledger(cache) == total - 5
    first.abort()
    assert ledger(cache) == total
    cache.evict(1000)
    assert cache.available_tokens() == total


def test_the_terms(cache: KVCache) -> None:
    """Four tokens a page: nothing is rounded."""
    assert (cache.available_tokens(), cache.evictable_tokens(), cache.protected_tokens()) == (128, 0, 0)
    run(cache, ids("abcdefgh"))
    assert (cache.available_tokens(), cache.evictable_tokens(), cache.protected_tokens()) == (120, 8, 0)
    node, _ = cache.match(None, ids("abcdefgh"))
    cache.lock(node)
    assert (cache.available_tokens(), cache.evictable_tokens(), cache.protected_tokens()) == (120, 0, 8)
    request = Request(cache, ids("abcdefghi"))
    assert (cache.available_tokens(), cache.evictable_tokens(), cache.protected_tokens()) == (116, 0, 11)
    request.finish()
    cache.unlock(node)
    assert (cache.available_tokens(), cache.evictable_tokens(), cache.protected_tokens()) == (116, 12, 0)


@pytest.mark.parametrize("pages", [1, 7, 31])
def test_what_is_reported_as_available_can_be_had(make_cache: MakeCache, geometry: Geometry, pages: int) -> None:
    """However much is recorded, a request of available + evictable tokens can be bound."""
    cache = make_cache(geometry.token_bytes, slot_tokens=geometry.tokens_in(32))
    run(cache, [5] * geometry.tokens_in(pages))
    tokens = cache.available_tokens() + cache.evictable_tokens()
    assert tokens == cache.total_tokens
    request = Request(cache, [6] * tokens)
    request.verify()
    assert cache.available_tokens() == 0
    request.abort()


def test_live_tokens_are_those_not_recorded(cache: KVCache) -> None:
    request = Request(cache, ids("abcdef"), room=2)
    assert cache.usage()["live_tokens"] == 8
    request.record(4)
    assert cache.usage()["live_tokens"] == 4
    request.record(2)
    assert cache.usage()["live_tokens"] == 4
    request.record()
    assert cache.usage()["live_tokens"] == 2
    request.abort()
    assert cache.usage()["live_tokens"] == 0
