# SPDX-License-Identifier: Apache-2.0
"""Plans of tree-aware decode on their way from the core to the kernels."""

from array import array

import numpy as np
import pytest
import torch

from vt_sglang._core import KVCache
from vt_sglang.adapter.sharing import LEAST_SAVED, MAX_LEVELS, Sharing


@pytest.fixture
def core() -> KVCache:
    return KVCache(driver="none", page_bytes=4096, token_bytes=256, slots=12, slot_tokens=2000, budget_pages=2000)


def _request(core: KVCache, *spans: tuple[int, int]) -> int:
    """A live slot whose tokens are these spans (name, tokens), recorded, and one more."""
    tokens = array("q", (name * 10_000 + token for name, count in spans for token in range(count)))
    node = core.match(None, tokens)[0]
    core.lock(node)
    slot = core.bind(None, node, len(tokens) + 1)[0]
    core.record(slot, tokens, len(tokens))
    core.unlock(node)
    return slot


def _sharing(core: KVCache, heads: int = 32, kv_heads: int = 8) -> Sharing:
    return Sharing(
        core,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        v_head_dim=64,
        itemsize=2,
        multiprocessors=16,
        device=torch.device("cpu"),
        hopper=False,
    )


def test_a_plan_arrives(core: KVCache) -> None:
    slots = np.array([_request(core, (1, 300), (2 + row, 20)) for row in range(3)] + [_request(core, (9, 400))])
    sharing = _sharing(core)
    assert sharing.update(slots) == 2 * 300
    tasks = sharing.tasks
    assert tasks.header[:2].tolist() == [1, -(-300 // tasks.tile)]
    slot, start, stop, first, count = tasks.tasks[0, :5].tolist()
    assert slot in slots[:3]
    assert (start, stop, count) == (0, 300, 3)
    assert sorted(tasks.order[first : first + count].tolist()) == [0, 1, 2]
    assert tasks.ends[:4].tolist() == [300, 300, 300, 0]
    assert tasks.row_tasks[:4, 0].tolist() == [0, 0, 0, -1]


def test_plans_follow_the_batch(core: KVCache) -> None:
    """Through more changes than there are buffers; a batch that goes on is not planned again."""
    slots = [_request(core, (1, 300), (2 + row, 20)) for row in range(8)]
    sharing = _sharing(core)
    for step in range(12):
        batch = np.array(slots[: 2 + step % 7])
        for _ in range(2):
            assert sharing.update(batch) == (len(batch) - 1) * 300
            assert sharing.tasks.header[4] == len(batch)
            assert sharing.tasks.ends[: len(batch)].tolist() == [300] * len(batch)
    assert sharing.update(np.array(slots[:1])) == 0
    assert sharing.tasks.header[0] == 0
    assert not sharing.tasks.ends.any()


def test_what_is_shared_by_few_or_short_is_not_worth_it(core: KVCache) -> None:
    slots = [_request(core, (1, LEAST_SAVED - 1), (2 + row, 20)) for row in range(4)]
    assert _sharing(core).update(np.array(slots)) == 0


def test_the_partial_results_have_room(core: KVCache) -> None:
    for heads, kv_heads in ((32, 8), (4, 4), (32, 1)):
        sharing = _sharing(core, heads, kv_heads)
        one_level = core.slots + (sharing.tasks.workers - 1) * min(sharing.tasks.members, core.slots)
        assert one_level <= sharing.tasks.max_places <= one_level + (MAX_LEVELS - 1) * core.slots
        assert sharing.tasks.members * (heads // kv_heads) <= 64


def test_where_it_is_possible() -> None:
    assert Sharing.possible(heads=32, kv_heads=8, window=-1)
    assert Sharing.possible(heads=32, kv_heads=1, window=-1)
    assert not Sharing.possible(heads=64, kv_heads=1, window=-1)
    assert not Sharing.possible(heads=32, kv_heads=8, window=1024)
