# SPDX-License-Identifier: Apache-2.0
"""No request waits for the compiler because a batch has another size, or stands elsewhere, than those before it."""

from typing import Any

import pytest
import torch
from vt_sglang.triton_kernels import decode, decode_hopper, decode_plan, prefill

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="compute capability 9"
)

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 128
SHAPE: dict[str, Any] = {"head_dim": HEAD_DIM, "v_head_dim": HEAD_DIM, "itemsize": 2, "device": "cuda"}


def _compiled(*kernels: Any) -> list[int]:
    """How many variants there are of each."""
    return [sum(len(cache[0]) for cache in kernel.device_caches.values()) for kernel in kernels]


def test_prefill_of_any_size() -> None:
    plan = prefill.PrefillPlan(group=HEADS // KV_HEADS, **SHAPE)
    counts = []
    for batch in (1, 2, 3, 16, 17, 40, 128, 200):
        plan.update(torch.arange(0, 5 * batch + 1, 5, dtype=torch.int32, device="cuda"), 5 * batch)
        counts.append(_compiled(prefill.prefill_plan_kernel))
    assert counts == counts[:1] * len(counts)


@pytest.mark.parametrize("config", [None, pytest.param(decode_hopper.CONFIG, marks=needs_hopper)], ids=["", "Hopper"])
def test_decode_of_the_last_rows_of_a_batch(config: decode_plan.DecodeConfig | None) -> None:
    """Mixed batches decode rows from any on; their numbers need not begin at a multiple of 16 bytes."""
    rows, batch = 2048, 3
    plan = decode_plan.DecodePlan(
        max_batch=16,
        kv_heads=KV_HEADS,
        group=HEADS // KV_HEADS,
        multiprocessors=torch.cuda.get_device_properties("cuda").multi_processor_count,
        config=config,
        **SHAPE,
    )
    cache = torch.randn(8, rows, KV_HEADS, HEAD_DIM, device="cuda").bfloat16()
    query = torch.randn(batch, HEADS, HEAD_DIM, device="cuda").bfloat16()
    own = decode_hopper.decode_hopper_kernel if config else decode.decode_kernel
    kernels = (decode_plan.plan_kernel, decode_plan.parts_kernel, own)
    slots = torch.tensor([0, 0, 0, 5, 1, 2, 5, 1, 2], device="cuda")
    lengths = torch.tensor([0, 0, 0, 700, 40, 2000, 700, 40, 2000], device="cuda")
    counts, outputs = [], []
    for first in (6, 3):
        some = slice(first, first + batch)
        outputs.append(torch.full_like(query, float("nan")))
        plan.update(slots[some], lengths[some])
        decode.decode_attention(query, cache, cache, outputs[-1], slots[some], lengths[some], plan, scaling=0.1)
        counts.append(_compiled(*kernels))
    assert counts[0] == counts[1]
    assert torch.equal(*outputs)
