# SPDX-License-Identifier: Apache-2.0
"""Merge the parts into which decode.py cut a request.

    out = sum_i 2^(lse_i - lse) out_i,   lse = log2 sum_i 2^lse_i

over the parts i, with lse_i the base-2 logarithm of a part's softmax denominator (arXiv 2205.14135, section 3.1). A
sink adds its exponential to the denominator here, once a request.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from .numerics import LOG2E
from .tiles import worker_of, workers_used


@triton.jit
def merge_kernel(
    partial,  # [workers, 2, heads, v_head_dim] float32
    partial_lse,  # [workers, 2, heads] float32
    out,  # [batch, heads, v_head_dim], written where a request was cut, and 0 where it has no token
    tile_ends,  # [batch]
    sinks,  # [heads] or None
    workers,
    out_batch_stride,
    out_head_stride,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a request and query head."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    total = tl.load(tile_ends + tl.num_programs(0) - 1)
    start = tl.load(tile_ends + request - 1, mask=request > 0, other=0)
    end = tl.load(tile_ends + request)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    mask = v_dims < V_HEAD_DIM
    at = request.to(tl.int64) * out_batch_stride + head * out_head_stride + v_dims
    if start == end:  # padding: no token, and nobody else writes it
        tl.store(out + at, tl.zeros([BLOCK_V_DIM], tl.float32).to(out.dtype.element_ty), mask=mask)
        return
    used = workers_used(total, workers)
    first = worker_of(start, total, used)
    last = worker_of(end - 1, total, used)
    if first == last:
        return
    if PDL:
        gdc_wait()  # for the decode kernel's results
    top = tl.full([], float("-inf"), tl.float32)
    denominator = tl.zeros([], tl.float32)
    if sinks is not None:
        top = tl.load(sinks + head).to(tl.float32) * LOG2E
        denominator += 1.0
    sums = tl.zeros([BLOCK_V_DIM], tl.float32)
    for block in range(first, last + 1, BLOCK_PARTS):
        worker = block + tl.arange(0, BLOCK_PARTS)
        part = (worker * 2 + tl.where(worker == first, 1, 0)) * tl.num_programs(1) + head
        lse = tl.load(partial_lse + part, mask=worker <= last, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(lse, 0))
        weights = tl.exp2(lse - new_top)
        fade = tl.exp2(top - new_top)
        parts = tl.load(
            partial + part[:, None] * V_HEAD_DIM + v_dims[None, :],
            mask=(worker <= last)[:, None] & mask[None, :],
            other=0.0,
        )
        sums = sums * fade + tl.sum(parts * weights[:, None], 0)
        denominator = denominator * fade + tl.sum(weights, 0)
        top = new_top
    tl.store(out + at, (sums / denominator).to(out.dtype.element_ty), mask=mask)
