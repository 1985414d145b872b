# SPDX-License-Identifier: Apache-2.0
"""Which parts of the tree are found how often."""

from array import array

from core_harness import ids

from vt_sglang._core import KVCache


def ask(cache: KVCache, prompt: array, namespace: str | None = None) -> None:
    """A request from match to release."""
    node, _ = cache.match(namespace, prompt)
    cache.lock(node)
    slot = cache.bind(namespace, node, len(prompt))[0]
    cache.record(slot, prompt)
    cache.release(slot)
    cache.unlock(node)


def test_ordered_by_tokens_saved(cache: KVCache) -> None:
    for text in ("systemA", "systemB", "systemC", "systemA, and more", "systemA, and more"):
        ask(cache, ids(text))
    space, start, end, hits, first = cache.busiest(1)[0]
    assert (space, start, end, hits, first) == (None, 0, 6, 4, list(ids("system")))
    assert [it[1:4] for it in cache.busiest(10)] == [(0, 6, 4), (7, 17, 1), (6, 7, 2)]
    assert cache.busiest(0) == []


def test_all_saved_tokens_are_there(cache: KVCache) -> None:
    """Where nothing was evicted, the sum over all nodes is what binds found, splits or not."""
    for text in ("abcdef", "abcxyz", "abcdefgh", "ab", "abcdeX", "abcdefgh", "q"):
        ask(cache, ids(text))
    saved = sum(hits * (end - start) for _, start, end, hits, _ in cache.busiest(100))
    assert saved == cache.counters()["tokens_matched"] > 0


def test_namespaces(cache: KVCache) -> None:
    for namespace in (None, "", "tenant"):
        for _ in range(2):
            ask(cache, ids("same"), namespace)
    assert {it[0] for it in cache.busiest(10)} == {None, "", "tenant"}


def test_only_some_tokens_are_told(cache: KVCache) -> None:
    for _ in range(2):
        ask(cache, array("q", range(40)))
    assert cache.busiest(1) == [(None, 0, 40, 1, list(range(16)))]


def test_a_match_that_is_not_bound_is_no_hit(cache: KVCache) -> None:
    ask(cache, ids("abc"))
    cache.match(None, ids("abc"))
    assert cache.busiest(10) == []
