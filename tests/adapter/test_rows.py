# SPDX-License-Identifier: Apache-2.0
"""What is told of a request when its row is given back."""

import logging
from array import array
from types import SimpleNamespace

import pytest

from vt_sglang._core import KVCache
from vt_sglang.adapter.rows import VTensorRows


def _bound(core: KVCache, tokens: list[int]) -> int:
    """The slot of a request, of which the cached prefix is shared."""
    ids = array("q", tokens)
    node, _ = core.match(None, ids, len(tokens) - 1, len(tokens))
    core.lock(node)
    slot = core.bind(None, node, len(tokens))[0]
    core.unlock(node)
    core.record(slot, ids)
    return slot


def test_what_a_request_has_cost_is_told_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    """The first maps all it has. The second finds 10 tokens, two pages of four and half a one, which only a slot in use
    maps; the third, all the second had."""
    core = KVCache(driver="host", page_bytes=4096, token_bytes=1024, slots=4, slot_tokens=32, budget_pages=16)
    rows = VTensorRows(core, max_context_len=32, device="cpu")
    requests = [
        SimpleNamespace(rid="first", req_pool_idx=_bound(core, list(range(10)))),
        SimpleNamespace(rid="second", req_pool_idx=_bound(core, [*range(10), *range(20, 27)])),
    ]
    with caplog.at_level(logging.DEBUG, "vt_sglang.adapter.rows"):
        for it in requests:
            rows.free(it)
        requests.append(SimpleNamespace(rid="third", req_pool_idx=_bound(core, [*range(10), *range(20, 27), 30])))
        rows.free(requests[-1])
    assert [it.req_pool_idx for it in requests] == [None] * 3
    told = [record.getMessage().rsplit("; ", 1)[0] for record in caplog.records]
    assert told == [
        "Request first: 0 bytes of its prefix adopted, 0 aliased; 3 pages mapped, 0 unmapped, "
        "0 taken where they were mapped, 0 moved, 0 copied; tail not copied",
        "Request second: 0 bytes of its prefix adopted, 8192 aliased; 5 pages mapped, 0 unmapped, "
        "0 taken where they were mapped, 0 moved, 0 copied; tail copied",
        "Request third: 20480 bytes of its prefix adopted, 0 aliased; 0 pages mapped, 0 unmapped, "
        "0 taken where they were mapped, 0 moved, 0 copied; tail not copied",
    ]


def test_nothing_is_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    core = KVCache(driver="host", page_bytes=4096, token_bytes=1024, slots=4, slot_tokens=32, budget_pages=16)
    rows = VTensorRows(core, max_context_len=32, device="cpu")
    with caplog.at_level(logging.INFO, "vt_sglang.adapter.rows"):
        rows.free(SimpleNamespace(rid="first", req_pool_idx=_bound(core, [1, 2, 3])))
    assert not caplog.records
