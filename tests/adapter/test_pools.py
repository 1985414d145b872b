# SPDX-License-Identifier: Apache-2.0
"""The faces that SGLang sees of the core: layout, KV buffers, rows, allocator."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from vt_sglang._core import KVCache
from vt_sglang.layout import Geometry, KVLayout, host_page_bytes

LAYOUT = KVLayout(layers=3, kv_heads=2, head_dim=16, v_head_dim=24, itemsize=4)


@pytest.fixture
def core() -> KVCache:
    return KVCache(
        driver="host", page_bytes=4096, token_bytes=LAYOUT.token_bytes, slots=5, slot_tokens=100, budget_pages=64
    )


def test_layout_adds_up() -> None:
    ends = []
    for layer in range(LAYOUT.layers):
        ends.append((LAYOUT.key_offset(layer), LAYOUT.key_offset(layer) + 2 * 16 * 4))
        ends.append((LAYOUT.value_offset(layer), LAYOUT.value_offset(layer) + 2 * 24 * 4))
    assert all(end == start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1][1] == LAYOUT.token_bytes


@pytest.mark.parametrize("token_bytes", [64, 960, 4096, 6000])
def test_geometry_is_that_of_bytes(token_bytes: int) -> None:
    geometry = Geometry(page_bytes=4096, token_bytes=token_bytes)
    for tokens in range(1, 200):
        touched = {byte // 4096 for byte in (0, tokens * token_bytes - 1)}
        assert geometry.pages_for(tokens) == max(touched) + 1
        assert geometry.page_of(tokens) == tokens * token_bytes // 4096
    for pages in range(1, 50):
        assert (
            geometry.pages_for(geometry.tokens_in(pages)) <= pages < geometry.pages_for(geometry.tokens_in(pages) + 1)
        )


@pytest.mark.parametrize(
    ("token_bytes", "page_bytes"),
    [(512, 2**15), (2048, 2**17), (2**17, 2**21), (2**15, 2**21), (1, 4096), (768, 2**15)],
)
def test_page_size_on_the_host(token_bytes: int, page_bytes: int) -> None:
    assert host_page_bytes(token_bytes) == page_bytes


@pytest.mark.usefixtures("plugged")
def test_buffers_are_views_of_the_virtual_tensors(core: KVCache) -> None:
    """What is written through a layer's K and V lies where the layout says, and nowhere else."""
    from vt_sglang.adapter.kv_pool import VTensorKVPool

    pool = VTensorKVPool(core, LAYOUT, dtype=torch.float32, device="cpu", start_layer=0, end_layer=3)
    slot = core.bind(None, 0, 70)[0]
    raw = np.from_dlpack(core.tensor(slot * core.slot_bytes, [70 * LAYOUT.token_bytes], [1], "uint8"))
    raw[:] = 0
    expected = np.zeros((70, LAYOUT.token_bytes // 4), dtype=np.float32)
    for layer in range(3):
        keys, values = pool.slot_view(layer, slot, 70)
        assert keys.shape == (70, 2, 16)
        assert values.shape == (70, 2, 24)
        keys.copy_(torch.arange(keys.numel(), dtype=torch.float32).view(keys.shape) + 1000 * layer)
        values.copy_(-torch.arange(values.numel(), dtype=torch.float32).view(values.shape) - 1000 * layer)
        for offset, part in ((LAYOUT.key_offset(layer), keys), (LAYOUT.value_offset(layer), values)):
            flat = part.reshape(70, -1).numpy()
            expected[:, offset // 4 : offset // 4 + flat.shape[1]] = flat
    assert np.array_equal(raw.view(np.float32).reshape(70, -1), expected)
    # Stock code finds the same tokens through the slot's indices.
    assert torch.equal(pool.get_key_buffer(1)[slot * core.slot_tokens + 5], pool.slot_view(1, slot, 70)[0][5])
    assert sum(pool.get_kv_size_bytes()) == 64 * 4096


@pytest.mark.usefixtures("plugged")
def test_rows_are_affine_and_constant(core: KVCache) -> None:
    from vt_sglang.adapter.rows import VTensorRows

    rows = VTensorRows(core, max_context_len=100, device="cpu")
    assert len(rows.free_slots) == rows.size == 4
    slot = core.bind(None, 0, 10)[0]
    rows.bound(slot)
    assert len(rows.free_slots) == 3
    assert rows.req_to_token[slot].tolist() == [slot * core.slot_tokens + i for i in range(100)]
    with pytest.raises(RuntimeError, match="constant"):
        rows.write((slot, slice(0, 1)), torch.zeros(1))
    with pytest.raises(RuntimeError, match="without the prefix"):
        rows.alloc([])


@pytest.mark.usefixtures("plugged")
def test_tokens_cannot_be_had_without_a_slot(core: KVCache) -> None:
    from vt_sglang.adapter.allocator import VTensorAllocator

    allocator = VTensorAllocator(core, dtype=torch.float32, device="cpu", kvcache=None)
    assert allocator.available_size() == core.total_tokens == 64 * 4096 // LAYOUT.token_bytes
    with pytest.raises(RuntimeError, match="by slot"):
        allocator.alloc(1)
    with pytest.raises(RuntimeError, match="with their slot"):
        allocator.free(torch.zeros(1))


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(
    ("slots", "context", "says"),
    [
        (100_000, 2**20, "TiB of addresses"),
        (5_000, 2**20, "int32"),
        (2_048, 2**20, "int32"),  # one too many
    ],
)
def test_too_many_or_too_long_virtual_tensors_are_refused(slots: int, context: int, says: str) -> None:
    from vt_sglang.adapter.pools import _check_addresses

    geometry = Geometry(page_bytes=2**21, token_bytes=2**12 if says == "int32" else 2**17)
    with pytest.raises(ValueError, match=f"{says}.*lower --max-running-requests or --context-length.*at most") as error:
        _check_addresses(geometry, "host", slots, context)
    most = int(str(error.value).split("at most ")[1].split()[0])
    _check_addresses(geometry, "host", most + 1, context)  # as many as it says fit, with the padding slot
    with pytest.raises(ValueError, match="at most"):
        _check_addresses(geometry, "host", most + 2, context)


@pytest.mark.usefixtures("plugged")
def test_a_lora_adapter_or_salt_shares_nothing(core: KVCache) -> None:
    """SGLang puts the adapter's id and the cache salt into a request's extra key."""
    from array import array

    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.sampling.sampling_params import SamplingParams

    from vt_sglang.adapter.allocator import VTensorAllocator
    from vt_sglang.adapter.rows import VTensorRows
    from vt_sglang.adapter.tree_cache import VTensorCache

    allocator = VTensorAllocator(core, dtype=torch.float32, device="cpu", kvcache=None)
    rows = VTensorRows(core, max_context_len=100, device="cpu")
    cache = VTensorCache(
        CacheInitParams(disable=False, req_to_token_pool=rows, token_to_kv_pool_allocator=allocator, page_size=1)
    )
    tokens = array("q", range(3, 60))

    def request(**options: str) -> Req:
        return Req("r", "", tokens, SamplingParams(max_new_tokens=4), **options)

    kinds = [{}, {"lora_id": "adapter"}, {"extra_key": "salt"}, {"extra_key": "salt", "lora_id": "adapter"}]
    for number, options in enumerate(kinds):
        for earlier, others in enumerate(kinds):
            found = cache.match_prefix(MatchPrefixParams(key=RadixKey(tokens, request(**others).extra_key)))
            assert len(found.device_indices) == (len(tokens) if earlier < number else 0), (options, others)
        req = request(**options)
        slot = core.bind(req.extra_key, 0, len(tokens))[0]
        core.record(slot, tokens)
        core.release(slot)


@pytest.mark.usefixtures("plugged")
def test_the_longest_request_must_be_mappable() -> None:
    """One more page than can be mapped is refused; just as many are not, and can be mapped."""
    from vt_sglang.adapter.pools import check_mappings

    core = KVCache(
        driver="host", page_bytes=4096, token_bytes=4096, slots=3, slot_tokens=40, budget_pages=64, mapping_limit=42
    )
    mappable = core.mappable_pages()
    assert mappable == 20
    check_mappings(core, mappable)
    with pytest.raises(ValueError, match=r"takes 21 pages, .* map 20: take larger pages with --vtensor-page-bytes"):
        check_mappings(core, mappable + 1)
    core.release(core.bind(None, 0, mappable)[0])
