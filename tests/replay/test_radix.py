# SPDX-License-Identifier: Apache-2.0
"""SGLang's RadixCache on the same requests."""

import pytest
from replay_reference import longest_common_prefixes, random_requests

from vt_sglang.replay import caches, radix, work

pytestmark = pytest.mark.skipif(radix.why_not() is not None, reason=f"SGLang cannot be imported: {radix.why_not()}")


@pytest.mark.parametrize("chunk", [1000, 5])
def test_finds_the_longest_common_prefix_where_all_fits(chunk: int) -> None:
    works = work.prepare(random_requests(1, 60), 1)
    outcome = radix.play(10_000, works, chunk)
    assert outcome.matched == longest_common_prefixes(works)
    assert outcome.seconds > 0


def test_agrees_closely_at_the_same_capacity() -> None:
    """Not exactly: where a match ends inside a node, SGLang counts the rest of that node as used too."""
    ours = stock = prompts = 0
    for seed in range(4):
        works = work.prepare(random_requests(seed, 100), 1)
        made = caches.Shape(4, 4, 4, 1000)
        for capacity in (60, 100, 200):
            ours += sum(caches.play(caches.make(works, made, capacity), works, made).matched)
            stock += sum(radix.play(capacity, works, 1000).matched)
            prompts += sum(it.prompt for it in works)
    assert abs(ours - stock) < 0.02 * prompts
    assert stock > 0.1 * prompts


def test_refuses_what_it_cannot_hold() -> None:
    works = work.prepare(random_requests(0, 40), 1)
    longest = max(it.prompt for it in works)
    assert radix.play(longest - 1, works, 1000).refused == sum(it.prompt > longest - 1 for it in works)
