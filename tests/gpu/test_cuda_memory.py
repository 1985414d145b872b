# SPDX-License-Identifier: Apache-2.0
"""The core over real GPU memory: what is written through one virtual tensor is read through another."""

from array import array

import pytest
import torch

from vt_sglang._core import DriverError, KVCache, OutOfPages

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PAGE = 2 * 2**20
TOKENS_A_PAGE = 16
TOKEN_ELEMENTS = PAGE // TOKENS_A_PAGE // 2  # bfloat16


def _cache(**options: int) -> KVCache:
    sizes = {"page_bytes": 0, "slots": 6, "slot_tokens": 1000, "budget_pages": 64} | options
    return KVCache(driver="cuda", token_bytes=PAGE // TOKENS_A_PAGE, **sizes)  # type: ignore[arg-type]


def _view(cache: KVCache) -> torch.Tensor:
    """[slots * slot_tokens, elements of a token], over the whole arena."""
    shape = [cache.slots * cache.slot_tokens, TOKEN_ELEMENTS]
    return torch.utils.dlpack.from_dlpack(cache.tensor(0, shape, [TOKEN_ELEMENTS, 1], "bfloat16"))


def _fill(cache: KVCache, slot: int, start: int, end: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    data = torch.randn(end - start, TOKEN_ELEMENTS, device="cuda", generator=generator).bfloat16()
    first = slot * cache.slot_tokens
    _view(cache)[first + start : first + end] = data
    return data


def _read(cache: KVCache, slot: int, start: int, end: int) -> torch.Tensor:
    first = slot * cache.slot_tokens
    return _view(cache)[first + start : first + end]


def test_a_prefix_is_shared_and_its_tail_copied() -> None:
    cache = _cache()
    cache.set_stream(torch.cuda.current_stream().cuda_stream)
    assert cache.page_bytes == PAGE
    tokens = array("q", range(100))
    a = cache.bind(None, 0, 100)[0]
    data = _fill(cache, a, 0, 100, seed=1)
    cache.record(a, tokens)
    node, matched = cache.match(None, tokens, 90)
    assert matched == 90
    cache.lock(node)
    b, tail, shared, _ = cache.bind(None, node, 120)
    assert (tail, shared) == ("copied", 90 // TOKENS_A_PAGE)
    assert torch.equal(_read(cache, b, 0, 90), data[:90])
    _fill(cache, b, 90, 120, seed=2)
    assert torch.equal(_read(cache, a, 0, 100), data), "the copy's owner wrote into the shared tail"
    # Aliasing is real: the same bytes at two addresses.
    _fill(cache, a, 0, 16, seed=3)
    assert torch.equal(_read(cache, b, 0, 16), _read(cache, a, 0, 16))
    assert cache.physical_bytes() == cache.usage()["created_pages"] * PAGE
    cache.check()


def test_memory_is_taken_on_demand_and_given_back() -> None:
    free_before = torch.cuda.mem_get_info()[0]
    cache = _cache(budget_pages=512)
    taken_at_start = free_before - torch.cuda.mem_get_info()[0]
    assert taken_at_start < 64 * PAGE  # the padding page, and what the driver keeps for itself
    slot = cache.bind(None, 0, 1000)[0]
    assert free_before - torch.cuda.mem_get_info()[0] >= 62 * PAGE
    cache.release(slot)
    assert cache.trim(0) == 63
    assert free_before - torch.cuda.mem_get_info()[0] < 64 * PAGE
    cache.check()


def test_a_cuda_graph_follows_a_remap() -> None:
    """A captured kernel reads addresses; what is mapped there may change between its replays."""
    cache = _cache()
    a = cache.bind(None, 0, 16)[0]
    _fill(cache, a, 0, 16, seed=4)
    total = torch.zeros((), device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        total.copy_(_read(cache, a, 0, 16).float().sum())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total.copy_(_read(cache, a, 0, 16).float().sum())
    graph.replay()
    before = float(total)
    cache.record(a, array("q", range(16)))
    cache.release(a)
    assert cache.trim(0) == 0  # recorded: still held
    cache.evict(1)
    assert cache.trim(0) == 1  # unmapped and given back
    assert cache.bind(None, 0, 16)[0] == a
    data = _fill(cache, a, 0, 16, seed=5)
    graph.replay()
    assert float(total) == pytest.approx(float(data.float().sum()), rel=1e-4)
    assert float(total) != pytest.approx(before, rel=1e-4)


def test_a_batch_that_runs_out_of_memory_leaves_no_trace() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    pages = total // PAGE + 64  # more than the card has
    cache = _cache(budget_pages=pages, slot_tokens=pages * TOKENS_A_PAGE)
    before = cache.usage()
    torch.cuda.empty_cache()
    with pytest.raises(OutOfPages):
        cache.bind(None, 0, pages * TOKENS_A_PAGE)
    after = cache.usage()
    assert after["withheld_pages"] > 64
    assert (after["live_slots"], after["held_pages"]) == (before["live_slots"], before["held_pages"])
    cache.check()
    assert cache.trim(0) > 0
    slot = cache.bind(None, 0, 100)[0]
    _fill(cache, slot, 0, 100, seed=6)
    cache.check()


def test_what_the_driver_refuses_is_said() -> None:
    with pytest.raises(ValueError, match="allocation granularity, 2097152"):
        _cache(page_bytes=65536)
    with pytest.raises(DriverError, match="lower --max-running-requests or --context-length"):
        _cache(slots=2**20, slot_tokens=2**20)
