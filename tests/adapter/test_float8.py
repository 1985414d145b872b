# SPDX-License-Identifier: Apache-2.0
"""KV in float8: the pool, the scales, and attention on a CPU; on a GPU, tests/gpu has the like."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schedulers import SERVER_ARGS, STOCK, VTENSOR, run_scheduler

from vt_sglang._core import KVCache
from vt_sglang.layout import KVLayout

pytestmark = pytest.mark.usefixtures("plugged")

HEADS, KV_HEADS, HEAD_DIM, V_HEAD_DIM, SCALING = 4, 2, 16, 32, 0.25
FLOAT8 = torch.float8_e4m3fn
WINDOWS = (-1, 20)
"""Of the model's two layers."""


def _pool(dtype: torch.dtype) -> Any:
    from vt_sglang.adapter.kv_pool import VTensorKVPool

    layout = KVLayout(layers=2, kv_heads=KV_HEADS, head_dim=HEAD_DIM, v_head_dim=V_HEAD_DIM, itemsize=dtype.itemsize)
    core = KVCache(
        driver="host", page_bytes=4096, token_bytes=layout.token_bytes, slots=4, slot_tokens=200, budget_pages=64
    )
    return VTensorKVPool(core, layout, dtype=dtype, device="cpu", start_layer=0, end_layer=1)


def _layers(k_scale: Any = None, v_scale: Any = None) -> torch.nn.ModuleList:
    from sglang.srt.layers.radix_attention import RadixAttention

    layers = [
        RadixAttention(HEADS, HEAD_DIM, SCALING, KV_HEADS, index, v_head_dim=V_HEAD_DIM, sliding_window_size=window)
        for index, window in enumerate(WINDOWS)
    ]
    for layer in layers:
        layer.k_scale, layer.v_scale = k_scale, v_scale
    return torch.nn.ModuleList(layers)


def _parameter(value: float) -> torch.nn.Parameter:
    """As a checkpoint's scale is found in a layer."""
    return torch.nn.Parameter(torch.tensor(value), requires_grad=False)


def test_buffers_are_bytes_and_views_are_float8() -> None:
    """What SGLang's own code reads of a pool is what its own pools have."""
    pool = _pool(FLOAT8)
    slot = pool.core.bind(None, 0, 10)[0]
    assert (pool.k_buffer[1].dtype, pool.v_buffer[1].dtype) == (torch.uint8, torch.uint8)
    keys, values = pool.slot_view(1, slot, 10)
    keys.copy_(torch.arange(10).view(10, 1, 1).expand_as(keys))
    values.fill_(-1.5)
    row = slot * pool.core.slot_tokens + 7
    for key, value in (
        (pool.get_key_buffer(1)[row], pool.get_value_buffer(1)[row]),
        [it[slot, 7] for it in pool.slots_view(1)],
    ):
        assert (key.dtype, value.dtype) == (FLOAT8, FLOAT8)
        assert (key.shape, value.shape) == ((KV_HEADS, HEAD_DIM), (KV_HEADS, V_HEAD_DIM))
        assert bool((key.float() == 7).all())
        assert bool((value.float() == -1.5).all())


def test_scales_are_those_of_the_layers() -> None:
    """Tensors stay the layers' own, numbers become tensors once, and none stay none."""
    from vt_sglang.adapter.kv_scales import KVScales, Scales

    pool = _pool(FLOAT8)
    loaded = _layers(_parameter(0.5), 2.0)
    scales = KVScales(pool, loaded)
    found = scales.of(loaded[1])
    assert (found.k.tolist(), found.v.tolist()) == ([0.5], [2.0])
    assert scales.of(loaded[1]).v is found.v, "CUDA graphs keep its address"
    loaded[1].k_scale.fill_(0.25)
    assert found.k.tolist() == [0.25]
    bare = _layers()
    assert KVScales(pool, bare).of(bare[0]) == Scales(None, None)
    with pytest.raises(ValueError, match=r"KV scales of shape \[2\].*leave --kv-cache-dtype at auto"):
        KVScales(pool, _layers(torch.ones(2), torch.ones(2)))


def test_scales_of_a_checkpoint_do_not_count_in_the_models_dtype() -> None:
    from vt_sglang.adapter.kv_scales import KVScales, Scales

    layers = _layers(_parameter(0.5), _parameter(2.0))
    assert KVScales(_pool(torch.float32), layers).of(layers[0]) == Scales(None, None)


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    k, v = (it.double().repeat_interleave(HEADS // KV_HEADS, 1) for it in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * SCALING
    positions = torch.arange(len(k) - len(q), len(k))[:, None]
    columns = torch.arange(len(k))[None, :]
    hidden = columns > positions
    if window >= 0:
        hidden |= columns < positions - window
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize(
    ("k_scale", "v_scale"),
    [
        pytest.param(None, None, id="none"),
        pytest.param(_parameter(0.5), _parameter(2.0), id="checkpoint"),
        pytest.param(0.5, 2.0, id="file"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_cpu(dtype: torch.dtype, k_scale: Any, v_scale: Any) -> None:
    """Chunks of a prefill and a decode step, against float64 on what float8 makes of K and V."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    from vt_sglang.adapter.attention import TorchAttention

    generator = torch.Generator().manual_seed(3)
    pool, layers = _pool(FLOAT8), _layers(k_scale, v_scale)
    backend = TorchAttention(SimpleNamespace(token_to_kv_pool=pool, model=layers))
    factors = [1.0 if it is None else float(it) for it in (k_scale, v_scale)]
    slots = [pool.core.bind(None, 0, 120)[0] for _ in range(2)]
    kept: dict[tuple[int, int], list[torch.Tensor]] = {}
    for starts, ends in (((0, 0), (50, 1)), ((50, 1), (90, 70)), ((90, 70), (91, 71))):
        new = [end - start for start, end in zip(starts, ends, strict=True)]
        decode = max(new) == 1
        batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
            req_pool_indices=torch.tensor(slots),
            seq_lens=torch.tensor(ends),
            seq_lens_cpu=torch.tensor(ends),
            extend_seq_lens_cpu=new,
        )
        backend.init_forward_metadata(batch)
        for layer, window in zip(layers, WINDOWS, strict=True):
            q = torch.randn(sum(new), HEADS, HEAD_DIM, generator=generator).to(dtype)
            k = torch.randn(sum(new), KV_HEADS, HEAD_DIM, generator=generator).to(dtype)
            v = torch.randn(sum(new), KV_HEADS, V_HEAD_DIM, generator=generator).to(dtype)
            v[0] = 5000.0  # more than float8 has
            forward = backend.forward_decode if decode else backend.forward_extend
            output = forward(q.flatten(1), k.flatten(1), v.flatten(1), layer, batch).view(sum(new), HEADS, V_HEAD_DIM)
            parts = zip(slots, q.split(new), k.split(new), v.split(new), output.split(new), strict=True)
            for slot, its_q, its_k, its_v, rows in parts:
                before = kept.get((slot, layer.layer_id), [its_k[:0], its_v[:0]])
                its_kv = kept[slot, layer.layer_id] = [
                    torch.cat(pair) for pair in zip(before, (its_k, its_v), strict=True)
                ]
                stored = [
                    (it.float() / factor).clamp(-448, 448).to(FLOAT8).double() * factor
                    for it, factor in zip(its_kv, factors, strict=True)
                ]
                expected = _reference(its_q, *stored, window)
                bound = (1e-5 if dtype == torch.float32 else 2e-2) * expected.abs().max()
                assert (rows.double() - expected).abs().max() <= bound


@pytest.mark.parametrize("attention", ["vtensor", "torch_native"])
def test_outputs_equal_stock(model: Path, tmp_path: Path, attention: str) -> None:
    """A scheduler's whole run, prefixes shared and tails copied, all in float8."""
    args = SERVER_ARGS | {"model_path": str(model), "max_total_tokens": 20000, "kv_cache_dtype": "fp8_e4m3"}
    workload = {"seed": 3, "at_once": 4, "longest": 200, "aborts": False, "flush": False}
    workload |= {"conversations": 3, "turns": 3, "new": 16}
    results = []
    for name, server in (("stock", STOCK), ("vtensor", VTENSOR | {"attention_backend": attention})):
        (tmp_path / name).mkdir()
        settings = {"server_args": args | server, "workload": workload}
        results.append(run_scheduler(tmp_path / name, settings))
    stock, ours = results
    assert ours["outputs"] == stock["outputs"]
    assert ours["vtensor"]["counters"]["pages_aliased"] > 0
