# SPDX-License-Identifier: Apache-2.0
"""What the simulated cache finds is what a plain reference finds, request by request."""

import pytest
from replay_reference import ReferenceCache, longest_common_prefixes, random_requests

from vt_sglang.replay import caches, work
from vt_sglang.replay.work import Work


def shape(*, chunk: int = 1000, page: int = 1, slots: int = 4) -> caches.Shape:
    """Tokens of 4 bytes, `page` of them a page."""
    return caches.Shape(4 * page, 4, slots, chunk)


def expected(works: list[Work], capacity: int, chunk: int) -> list[int]:
    reference = ReferenceCache(capacity)
    return [reference.serve(it, chunk) if it.prompt <= capacity else 0 for it in works]


@pytest.mark.parametrize("chunk", [1000, 5])
@pytest.mark.parametrize("capacity", [10, 40, 60, 100, 200])
def test_equals_a_plain_lru_tree(capacity: int, chunk: int) -> None:
    for seed in range(6):
        works = work.prepare(random_requests(seed, 60), 1)
        made = shape(chunk=chunk)
        core = caches.make(works, made, capacity)
        outcome = caches.play(core, works, made)
        core.check()
        assert outcome.matched == expected(works, capacity, chunk), seed


@pytest.mark.parametrize("page", [1, 3, 16])
def test_an_infinite_cache_finds_the_longest_common_prefix(page: int) -> None:
    for seed in range(6):
        works = work.prepare(random_requests(seed, 60), 1)
        made = shape(page=page)
        core = caches.make(works, made, caches.largest_pages(works, made))
        assert caches.play(core, works, made).matched == longest_common_prefixes(works), seed
        assert core.counters()["nodes_evicted"] == 0


def test_a_request_larger_than_the_cache_is_refused_and_counts_as_computed() -> None:
    works = work.prepare(random_requests(0, 40), 1)
    longest = max(it.prompt for it in works)
    made = shape()
    outcome = caches.play(caches.make(works, made, longest - 1), works, made)
    assert outcome.refused == sum(it.prompt > longest - 1 for it in works) > 0
    assert outcome.matched == expected(works, longest - 1, 1000)


def test_where_matched_tokens_were_found_adds_up() -> None:
    works = work.prepare(random_requests(3, 80), 1)
    made = shape(page=4)
    core = caches.make(works, made, 60)
    outcome = caches.play(core, works, made)
    core.check()
    details = caches.details(core, 1, 7)
    tokens = details["tokens"]
    assert tokens["adopted"] + tokens["aliased"] + tokens["copied"] == sum(outcome.matched)
    assert tokens["computed"] == 7
    assert details["bytes"] == {kind: 4 * tokens[kind] for kind in ("adopted", "aliased", "copied")}
    pages = details["pages"]
    assert pages["held"] + pages["free"] + pages["not_created"] == pages["budget"] == 60
    assert details["page_waste_bytes"] == pages["held"] * 16 - core.usage()["tree_tokens"] * 4


def test_blocks_are_found_as_a_whole_or_not_at_all() -> None:
    requests = random_requests(5, 60)
    for request in requests:
        del request.tokens[request.prompt :]
    works = work.prepare(requests, 4)
    made = caches.Shape(16, 16, 4, 1)
    core = caches.make(works, made, caches.largest_pages(works, made))
    outcome = caches.play(core, works, made)
    for number, (request, matched) in enumerate(zip(requests, outcome.matched, strict=True)):
        blocks = [tuple(request.tokens[at : at + 4]) for at in range(0, request.prompt, 4)]
        best = 0
        for earlier in requests[:number]:
            known = [tuple(earlier.tokens[at : at + 4]) for at in range(0, earlier.prompt, 4)]
            same = 0
            while same < min(len(blocks), len(known)) and blocks[same] == known[same]:
                same += 1
            best = max(best, same)
        assert matched == best
        assert work.cached_tokens(works[number], matched, 4) == min(4 * best, request.prompt - 1)


def test_blocks_with_outputs_never_bind_to_another_last_block() -> None:
    works = work.prepare(random_requests(7, 60), 4)
    made = caches.Shape(16, 16, 4, 1)
    core = caches.make(works, made, 30)
    outcome = caches.play(core, works, made)
    core.check()
    assert sum(outcome.matched) > 0
    assert all(matched <= it.limit for it, matched in zip(works, outcome.matched, strict=True))
