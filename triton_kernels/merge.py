# SPDX-License-Identifier: Apache-2.0
"""Merge the parts into which decode.py cut what a request reads.

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
def _add_parts(
    partial, partial_lse, first, step, parts, heads, head, top, denominator, sums,
    V_HEAD_DIM: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK_V_DIM: tl.constexpr,
):  # fmt: skip
    """Add the parts at places `first`, `first + step`, ..., so many of them."""
    v_dims = tl.arange(0, BLOCK_V_DIM)
    for block in range(0, parts, BLOCK_PARTS):
        part = block + tl.arange(0, BLOCK_PARTS)
        at = (first + part * step).to(tl.int64) * heads + head
        lse = tl.load(partial_lse + at, mask=part < parts, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(lse, 0))
        weights = tl.exp2(lse - new_top)
        fade = tl.exp2(top - new_top)
        outputs = tl.load(
            partial + at[:, None] * V_HEAD_DIM + v_dims[None, :],
            mask=(part < parts)[:, None] & (v_dims[None, :] < V_HEAD_DIM),
            other=0.0,
        )
        sums = sums * fade + tl.sum(outputs * weights[:, None], 0)
        denominator = denominator * fade + tl.sum(weights, 0)
        top = new_top
    return top, denominator, sums


@triton.jit
def merge_kernel(
    partial,  # [batch + workers, heads, v_head_dim] float32
    partial_lse,  # [batch + workers, heads] float32
    shared_partial,  # [places, heads, v_head_dim] float32, or None
    shared_partial_lse,  # [places, heads] float32
    out,  # [batch, heads, v_head_dim], written where a request was cut, and 0 where it has no token
    lengths,  # [batch]
    tile_ends,  # [batch]
    ranks,  # [batch]
    tasks,  # [tasks, TASK_FIELDS], or None
    places,  # [batch]
    levels,  # [batch, LEVELS]
    shared_tiles,  # [1]
    sinks,  # [heads] or None
    workers,
    shared_workers,
    out_batch_stride,
    out_head_stride,
    TASK_FIELDS: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a request and query head."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    mask = v_dims < V_HEAD_DIM
    at = request.to(tl.int64) * out_batch_stride + head * out_head_stride + v_dims
    if tl.load(lengths + request) == 0:  # padding: nobody else writes it
        tl.store(out + at, tl.zeros([BLOCK_V_DIM], tl.float32).to(out.dtype.element_ty), mask=mask)
        return
    rank = tl.load(ranks + request)
    if rank < 0:  # shorter than a tile, and written
        return
    total = tl.load(tile_ends + tl.num_programs(0) - 1)
    begin = tl.load(tile_ends + request - 1, mask=request > 0, other=0)
    end = tl.load(tile_ends + request)
    used = workers_used(total, workers)
    first = worker_of(begin, total, used)
    last = worker_of(end - 1, total, used)
    shares = False
    if tasks is not None:
        shares = tl.load(levels + request * LEVELS) >= 0
    if (first == last) & (not shares):
        return
    if PDL:
        gdc_wait()  # for the decode kernel's results
    top = tl.full([], float("-inf"), tl.float32)
    denominator = tl.zeros([], tl.float32)
    if sinks is not None:
        top = tl.load(sinks + head).to(tl.float32) * LOG2E
        denominator += 1.0
    sums = tl.zeros([BLOCK_V_DIM], tl.float32)
    top, denominator, sums = _add_parts(
        partial, partial_lse, rank + first, 1, last + 1 - first, heads, head, top, denominator, sums,
        V_HEAD_DIM, BLOCK_PARTS, BLOCK_V_DIM,
    )  # fmt: skip
    if tasks is not None:
        shared_total = tl.load(shared_tiles)
        shared_used = workers_used(shared_total, shared_workers)
        place = tl.load(places + request)
        for level in range(LEVELS):
            task = tl.load(levels + request * LEVELS + level)
            if task >= 0:
                field = tasks + task * TASK_FIELDS
                task_end = tl.load(field + 6)
                task_begin = task_end - tl.cdiv(tl.load(field + 2) - tl.load(field + 1), TILE)
                spans = worker_of(task_end - 1, shared_total, shared_used) + 1
                spans -= worker_of(task_begin, shared_total, shared_used)
                member = place - tl.load(field + 3)
                top, denominator, sums = _add_parts(
                    shared_partial, shared_partial_lse, tl.load(field + 5) + member, tl.load(field + 4), spans,
                    heads, head, top, denominator, sums, V_HEAD_DIM, BLOCK_PARTS, BLOCK_V_DIM,
                )  # fmt: skip
    tl.store(out + at, (sums / denominator).to(out.dtype.element_ty), mask=mask)
