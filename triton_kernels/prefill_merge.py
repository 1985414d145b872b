# SPDX-License-Identifier: Apache-2.0
"""Merge the parts into which prefill_hopper_plan.py divided what a tile of query rows sees.

    out = sum_i 2^(lse_i - lse) out_i,   lse = log2 sum_i 2^lse_i

as merge.py does for decode; a sink adds its exponential to the denominator here.
"""

import torch
import triton
import triton.language as tl

from .checks import FLOATS, check_vector, check_written
from .numerics import LOG2E
from .prefill_hopper_plan import FIELDS, ROWS, HopperPlan

BLOCK_ROWS = 16


@triton.jit
def prefill_merge_kernel(
    partial,  # [places * kv_heads, ROWS, HEAD_DIM] float32
    partial_lse,  # [places * kv_heads, ROWS] float32
    merges,  # [merges, FIELDS] int32
    out,  # [tokens, heads, HEAD_DIM], written
    sinks,  # [heads] or None
    out_token_stride,
    out_head_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One program BLOCK_ROWS rows of a row tile and KV head."""
    merge = tl.program_id(1)
    kv_head = tl.program_id(2)
    kv_heads = tl.num_programs(2)
    at = merges + merge * FIELDS
    start = tl.load(at)
    new = tl.load(at + 1)
    first_row = tl.load(at + 3)
    parts = tl.load(at + 5)
    place = tl.load(at + 6)
    own = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    rows = first_row + own
    tokens = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, HEAD_DIM)
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_ROWS], tl.float32)
    if sinks is not None:
        top = tl.load(sinks + heads).to(tl.float32) * LOG2E
        denominator += 1.0
    sums = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    for part in range(parts):
        from_ = ((place + part) * kv_heads + kv_head).to(tl.int64) * ROWS + own
        lse = tl.load(partial_lse + from_)
        outputs = tl.load(partial + from_[:, None] * HEAD_DIM + dims[None, :])
        new_top = tl.maximum(top, lse)
        weight = tl.exp2(lse - new_top)
        fade = tl.exp2(top - new_top)
        sums = sums * fade[:, None] + outputs * weight[:, None]
        denominator = denominator * fade + weight
        top = new_top
    at = (start + tokens).to(tl.int64) * out_token_stride + heads * out_head_stride
    tl.store(
        out + at[:, None] + dims[None, :],
        (sums / denominator[:, None]).to(out.dtype.element_ty),
        mask=(tokens < new)[:, None],
    )


def merge_prefill(plan: HopperPlan, out: torch.Tensor, sinks: torch.Tensor | None) -> None:
    """Write what the plan divided.

    Args:
        plan: of this batch, its partial results computed.
        out: [tokens, heads, head_dim], contiguous in the last dimension, of which the divided rows are written.
        sinks: [heads] or None.

    Raises:
        ValueError: out or sinks has another shape, dtype, layout or device than the plan's.
        TypeError: one is no tensor.
    """
    kv_heads, group, head_dim, _, _, device = plan.heads
    check_written(out, (plan.tokens, kv_heads * group, head_dim), device)
    if sinks is not None:
        check_vector("sinks", sinks, kv_heads * group, FLOATS, device)
    prefill_merge_kernel[(ROWS // BLOCK_ROWS, plan.merges, plan.kv_heads)](
        plan.partial,
        plan.partial_lse,
        plan.merge_records,
        out,
        sinks,
        out.stride(0),
        out.stride(1),
        GROUP=plan.group,
        HEAD_DIM=plan.head_dim,
        ROWS=ROWS,
        FIELDS=FIELDS,
        BLOCK_ROWS=BLOCK_ROWS,
        num_warps=4,
    )
