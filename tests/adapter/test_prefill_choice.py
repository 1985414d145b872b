# SPDX-License-Identifier: Apache-2.0
"""Which kernel attends in a batch's prefill on a Hopper GPU. That it is the faster one in all shapes that were measured
is tested beside them (tests/bench/test_kernels.py)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from vt_sglang.triton_kernels.prefill_hopper_plan import TILE, HopperPlan

from vt_sglang.adapter import prefill
from vt_sglang.adapter.prefill_choice import MOST_STEPS, ChosenPrefill, hopper_is_faster

H100: dict[str, int] = {"heads": 32, "kv_heads": 8, "processors": 132}


def test_little_work_is_the_projects_and_much_flash_attentions() -> None:
    assert hopper_is_faster([64], [2000], **H100)
    assert not hopper_is_faster([8192], [0], **H100)
    # A request of one row tile for each of 8 KV heads, and so many steps for each.
    most = MOST_STEPS * 132 // 8
    assert hopper_is_faster([32], [most * TILE - 16], **H100)
    assert not hopper_is_faster([32], [most * TILE + 16], **H100)
    assert not hopper_is_faster([32], [most * TILE - 16], heads=32, kv_heads=8, processors=131)


def test_requests_that_take_another_launch_are_flash_attentions() -> None:
    assert not hopper_is_faster([64, 100], [5000, TILE - 100], **H100)
    assert hopper_is_faster([64, 101], [5000, TILE - 100], **H100)
    assert hopper_is_faster([64, 0], [5000, 10], **H100), "without new tokens nothing is launched for it"


def test_short_prompts_are_the_projects_however_few_tokens_they_see() -> None:
    assert hopper_is_faster([TILE + 1], [0], **H100)
    assert hopper_is_faster([512] * 16, [0] * 16, **H100)
    assert not hopper_is_faster([512] * 64, [0] * 64, **H100), "together they are much"


class _Kernel:
    """Notes what it was prepared for, and which layers it attended in."""

    def __init__(self) -> None:
        self.prepared = 0
        self.layers: list[int] = []

    def prepare(self, _: Any) -> None:
        self.prepared += 1

    def forward(self, _query: Any, _output: Any, layer: RadixAttention, _sinks: Any) -> None:
        self.layers.append(layer.layer_id)


def _forward(kernel: ChosenPrefill, layers: list[RadixAttention], new: list[int], prefixes: list[int]) -> None:
    kernel.prepare(SimpleNamespace(extend_seq_lens_cpu=new, extend_prefix_lens_cpu=prefixes))
    for layer in layers:
        nothing = torch.empty(0)
        kernel.forward(nothing, nothing, layer, None)


def test_each_batch_and_shape_of_layers_has_its_kernel() -> None:
    layers = [
        RadixAttention(32, 128, 1.0, 8, layer_id=0),
        RadixAttention(8, 128, 1.0, 1, layer_id=1),
        RadixAttention(32, 128, 1.0, 8, layer_id=2, sliding_window_size=100),
    ]
    pool: Any = SimpleNamespace(dtype=torch.bfloat16)
    fa3, own = _Kernel(), _Kernel()
    kernel = ChosenPrefill(fa3, own, pool, torch.nn.ModuleList(layers), processors=132)  # type: ignore[arg-type]
    _forward(kernel, layers, [100], [2500])
    assert (own.layers, fa3.layers) == ([0, 1], [2])  # a window is FlashAttention-3's
    _forward(kernel, layers, [512], [32_768])
    assert (own.layers, fa3.layers) == ([0, 1, 1], [2, 0, 2])
    _forward(kernel, layers, [8192], [32_768])
    assert (own.layers, fa3.layers) == ([0, 1, 1], [2, 0, 2, 0, 1, 2])
    assert (own.prepared, fa3.prepared) == (2, 3)


def test_nothing_is_prepared_that_does_not_attend() -> None:
    layers = [RadixAttention(32, 128, 1.0, 8, layer_id=0)]
    pool: Any = SimpleNamespace(dtype=torch.float16)
    fa3, own = _Kernel(), _Kernel()
    kernel = ChosenPrefill(fa3, own, pool, torch.nn.ModuleList(layers), processors=132)  # type: ignore[arg-type]
    _forward(kernel, layers, [100], [2500])
    _forward(kernel, layers, [8192], [0])
    assert (own.layers, fa3.layers, own.prepared, fa3.prepared) == ([0], [0], 1, 1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (8, 1), (32, 32), (128, 128), (128, 1)])
def test_what_is_compiled_ahead_has_divided_work(heads: int, kv_heads: int) -> None:
    """So that the kernel and the merge of its parts are both compiled before the first request."""
    plan = HopperPlan(
        group=heads // kv_heads, kv_heads=kv_heads, head_dim=128, device="cpu", processors=prefill.WARM_PROCESSORS
    )
    plan.update([prefill.WARM_NEW], [prefill.WARM_PREFIX])
    assert plan.items > 0
    assert plan.merges > 0
    assert plan.short_requests == 0
