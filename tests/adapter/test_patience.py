# SPDX-License-Identifier: Apache-2.0
"""Calls that fail for a time are repeated, and nothing else is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recorded import Recorded

from vt_sglang._core import DriverError, KVCache, OutOfMemory, SlotsBusy
from vt_sglang.adapter import allocation, patience
from vt_sglang.adapter.tally import Tally
from vt_sglang.adapter.tree_cache import VTensorCache


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four pages in the tree and two free ones; nobody really waits."""
    core = KVCache(driver="host", page_bytes=4096, token_bytes=1024, slots=4, slot_tokens=40, budget_pages=8)
    slot, *_ = core.bind(None, 0, 24)
    core.record(slot, torch.arange(16).numpy())
    core.release(slot)
    assert (core.usage()["free_pages"], core.usage()["evictable_pages"]) == (2, 4)
    made = SimpleNamespace(core=core, device=torch.device("cpu"), last_forward=0, tally=Tally(), waits=[])
    monkeypatch.setattr(patience.time, "sleep", made.waits.append)
    return made


def _failing(times: int, error: type[Exception]) -> Any:
    left = [times]

    def call() -> str:
        if left[0] > 0:
            left[0] -= 1
            raise error("cuMemMap failed")
        return "done"

    return call


def test_what_can_be_had_at_once_costs_nothing(cache: Any) -> None:
    assert patience.patiently(cache, _failing(0, OutOfMemory)) == "done"
    assert cache.waits == []
    assert cache.core.usage()["created_pages"] == 7


def test_pages_beyond_those_promised_are_given_back(cache: Any) -> None:
    """Where mapping lacks memory: what is evicted for it, and not the free ones."""
    assert patience.patiently(cache, _failing(2, OutOfMemory)) == "done"
    usage = cache.core.usage()
    assert (usage["created_pages"], usage["free_pages"], usage["evictable_pages"]) == (3, 2, 0)
    assert len(cache.waits) == 2
    cache.core.check()


def test_nothing_goes_back_that_the_device_may_still_clear(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mapped ahead ends, which may clear a page; then the device is waited for; then memory goes back."""
    told: list[str] = []
    cache.core = Recorded(cache.core, told)
    monkeypatch.setattr(patience, "wait_for_forwards", lambda _: told.append("wait"))
    assert patience.patiently(cache, _failing(1, OutOfMemory)) == "done"
    assert [it for it in told if it in ("finish_ahead", "wait", "trim")] == ["finish_ahead", "wait", "trim"]


def test_patience_has_an_end(cache: Any) -> None:
    with pytest.raises(OutOfMemory, match="cuMemMap failed"):
        patience.patiently(cache, _failing(100, OutOfMemory))
    assert 10 < sum(cache.waits) < 30


def test_a_busy_slot_is_waited_for(cache: Any) -> None:
    slot, *_ = cache.core.bind(None, 0, 4)
    cache.last_forward = cache.core.begin_forward(torch.tensor([slot]).numpy())
    cache.core.release(slot)
    assert patience.patiently(cache, _failing(1, SlotsBusy)) == "done"
    assert cache.core.idle_slots() == 3
    assert cache.waits == []
    assert cache.tally.forward_waits == 1
    assert 0 < cache.tally.forward_wait_s < 60


def test_other_errors_are_not_repeated(cache: Any) -> None:
    call = _failing(1, DriverError)
    with pytest.raises(DriverError):
        patience.patiently(cache, call)
    assert call() == "done"


class _ScarceCore:
    """A core whose driver has no memory to map for more than so many requests at once."""

    def __init__(self, core: KVCache, most: int) -> None:
        self._core, self._most = core, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def grow(self, slots: np.ndarray, *arguments: Any) -> None:
        if len(slots) > self._most:
            raise OutOfMemory("cuMemMap failed")
        self._core.grow(slots, *arguments)


def test_decode_that_cannot_be_mapped_is_retracted(cache: Any) -> None:
    """SGLang is told that there is no memory, and not by an exception, which would end the server."""
    made = object.__new__(VTensorCache)
    made.core = _ScarceCore(cache.core, 1)
    made.tally = Tally()
    made.kv_pool, made.device, made.last_forward = SimpleNamespace(decode_guard_tokens=0), torch.device("cpu"), 0
    reqs = []
    for _ in range(2):
        slot = cache.core.bind(None, 0, 4)[0]
        reqs.append(SimpleNamespace(req_pool_idx=slot, kv=SimpleNamespace(kv_allocated_len=4)))
    batch = SimpleNamespace(tree_cache=made, reqs=reqs)

    def check(selected: list[int] | None = None) -> bool:
        return allocation.check_decode_mem(lambda *_: pytest.fail("stock"), batch, selected)

    assert not check()
    assert 0 < sum(cache.waits) < 1
    assert cache.core.pages_to_grow(np.array([reqs[0].req_pool_idx]), np.array([5])) == 1, "nothing was half done"
    cache.core.release(reqs[1].req_pool_idx)
    assert check([0])
    assert cache.core.pages_to_grow(np.array([reqs[0].req_pool_idx]), np.array([5])) == 0
    cache.core.check()


def test_a_prefill_that_cannot_be_mapped_ends_with_an_error(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waited is unlocked, one between chunks gives back what it holds, and both clients are told."""
    from vt_sglang.adapter import shortage

    made = object.__new__(VTensorCache)
    made.core, made.hopeless, made.short_of_memory = cache.core, [], False
    made.elastic, made.metrics = SimpleNamespace(step=lambda: False), None
    node, _ = cache.core.match(None, torch.arange(16).numpy())
    cache.core.lock(node)
    slot = cache.core.bind(None, 0, 4)[0]
    new = SimpleNamespace(rid="new", req_pool_idx=None, last_node=node)
    chunked = SimpleNamespace(rid="chunked", req_pool_idx=slot, last_node=0)
    sent: list[tuple[str, int]] = []

    def release(req: Any, *_: Any, is_insert: bool) -> None:
        assert not is_insert
        cache.core.release(req.req_pool_idx)

    def prepare(req: Any, message: str, status: int) -> None:
        assert "cuMemMap" in message
        req.finished_reason = SimpleNamespace(to_json=lambda: {"status_code": int(status)})

    monkeypatch.setattr(shortage, "release_kv_cache", release)
    monkeypatch.setattr(shortage, "prepare_abort", prepare)
    scheduler = SimpleNamespace(
        tree_cache=made,
        is_mixed_chunk=True,
        chunked_req=chunked,
        waiting_queue=[],
        ipc_channels=SimpleNamespace(
            send_to_tokenizer=SimpleNamespace(
                send_output=lambda it, _req: sent.append((it.rid, it.finished_reason["status_code"]))
            )
        ),
    )
    running = SimpleNamespace(is_empty=lambda: False)

    def original(*_: Any) -> None:
        assert made.mixing is running
        raise allocation.PrefillMemoryError([new, chunked], "cuMemMap failed")

    plan = shortage.get_new_batch_prefill(original, scheduler, running)
    assert (plan.batch_to_run, plan.running_batch) == (None, running)
    assert made.mixing is None
    assert sent == [("new", 503), ("chunked", 503)]
    assert scheduler.chunked_req is None
    usage = cache.core.usage()
    assert (usage["live_slots"], usage["held_pages"] - 1 - usage["evictable_pages"]) == (0, 0)
    cache.core.check()
