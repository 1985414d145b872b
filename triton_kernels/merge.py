# SPDX-License-Identifier: Apache-2.0
"""Merge the parts into which decode.py cut what a request reads.

    out = sum_i 2^(lse_i - lse) out_i,   lse = log2 sum_i 2^lse_i

over the parts i, with lse_i the base-2 logarithm of a part's softmax denominator (arXiv 2205.14135, section 3.1). A
sink adds its exponential to the denominator here, once a request.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .checks import FLOATS, check_vector, check_written
from .decode_plan import DecodePlan
from .numerics import LOG2E

# Of partial results, the elements that a program reads at a time; parts from which on a program has one query head;
# and a program's warps.
_ELEMENTS, _MANY_PARTS, _WARPS = 16384, 32, 4


@triton.jit
def merge_kernel(
    partial,  # [places, heads, v_head_dim] float32
    partial_lse,  # [places, heads] float32
    parts,  # [batch, 3, BLOCK_LEVELS] int32, see decode_plan.py
    out,  # [batch, heads, v_head_dim], written where a request was cut, and 0 where it has no token
    runs_taken,  # [1] int32, written: 0, for the next layer's decode
    sinks,  # [heads] or None
    out_batch_stride,
    out_head_stride,
    GROUP: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a request and GROUP query heads. All that can be read before the parts are there is read before."""
    request = tl.program_id(0)
    heads = tl.num_programs(1) * GROUP
    level = tl.arange(0, BLOCK_LEVELS)
    row = tl.arange(0, BLOCK_GROUP)
    head = tl.program_id(1) * GROUP + row
    v_dims = tl.arange(0, BLOCK_V_DIM)
    mask = (row < GROUP)[:, None] & (v_dims < V_HEAD_DIM)[None, :]
    at = parts + request * 3 * BLOCK_LEVELS + level
    first = tl.load(at)
    step = tl.load(at + BLOCK_LEVELS)
    ends = tl.load(at + 2 * BLOCK_LEVELS)
    own_first = tl.load(parts + request * 3 * BLOCK_LEVELS)
    own_step = tl.load(parts + request * 3 * BLOCK_LEVELS + BLOCK_LEVELS)
    own = tl.load(parts + request * 3 * BLOCK_LEVELS + 2 * BLOCK_LEVELS)
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_GROUP], tl.float32)
    if sinks is not None:
        top = tl.load(sinks + head, mask=row < GROUP, other=0.0).to(tl.float32) * LOG2E
        denominator += 1.0
    total = tl.max(ends, 0)
    if PDL:
        gdc_wait()  # for the decode kernel's results; by all, so that who waits for this kernel waits for that one too
        gdc_launch_dependents()
    if request + tl.program_id(1) == 0:
        tl.store(runs_taken, 0)
    to = out + request.to(tl.int64) * out_batch_stride + head[:, None] * out_head_stride + v_dims[None, :]
    if total < 0:  # padding: nobody else writes it
        tl.store(to, tl.zeros([BLOCK_GROUP, BLOCK_V_DIM], tl.float32).to(out.dtype.element_ty), mask=mask)
    if total <= 0:
        return
    sums = tl.zeros([BLOCK_GROUP, BLOCK_V_DIM], tl.float32)
    for block in range(0, total, BLOCK_PARTS):
        part = block + tl.arange(0, BLOCK_PARTS)
        if total == own:  # it shares nothing, and need not search
            place = own_first + own_step * part
        else:
            # Of each part, the level that it belongs to, and which of its parts it is.
            here = tl.sum((ends[None, :] <= part[:, None]).to(tl.int32), 1)[:, None] == level[None, :]
            before = tl.max(tl.where(ends[None, :] <= part[:, None], ends[None, :], 0), 1)
            place = tl.sum(tl.where(here, first[None, :] + step[None, :] * (part - before)[:, None], 0), 1)
        # [group, parts, v_head_dim]: a row's parts are one warp's.
        place = place.to(tl.int64)[None, :] * heads + head[:, None]
        there = (row < GROUP)[:, None] & (part < total)[None, :]
        lse = tl.load(partial_lse + place, mask=there, other=float("-inf"))
        outputs = tl.load(
            partial + place[:, :, None] * V_HEAD_DIM + v_dims[None, None, :],
            mask=there[:, :, None] & (v_dims < V_HEAD_DIM)[None, None, :],
            other=0.0,
        )
        # Rows that are padding have no part at all: any number will do for them.
        new_top = tl.where(row < GROUP, tl.maximum(top, tl.max(lse, 1)), 0.0)
        weights = tl.exp2(lse - new_top[:, None])
        fade = tl.exp2(top - new_top)
        sums = sums * fade[:, None] + tl.sum(outputs * weights[:, :, None], 1)
        denominator = denominator * fade + tl.sum(weights, 1)
        top = new_top
    tl.store(to, (sums / denominator[:, None]).to(out.dtype.element_ty), mask=mask)


def merge_parts(plan: DecodePlan, out: torch.Tensor, sinks: torch.Tensor | None) -> None:
    """Write what the plan's kernels left in parts.

    Args:
        plan: of this batch, its partial results computed.
        out: [batch, heads, v_head_dim], contiguous in the last dimension, written.
        sinks: [heads] or None.

    Raises:
        ValueError: out or sinks has another shape, dtype, layout or device than the plan's.
        TypeError: one is no tensor.
    """
    kv_heads, _, _, v_head_dim, _, device = plan.heads
    heads = kv_heads * plan.group
    check_written(out, (plan.batch, heads, v_head_dim), device)
    if sinks is not None:
        check_vector("sinks", sinks, heads, FLOATS, device)
    batch = plan.batch
    if batch == 0:
        raise ValueError("the plan is of no batch yet: call its update first")
    # About as many as a request has at most: exactly is known on the device only.
    parts = plan.parts_of_one(batch)
    if (shared := plan.shared_by(batch)) is not None:
        # Where all share, so many workers are left for each of the tasks that these make.
        parts += min(shared.workers, triton.cdiv(shared.workers * shared.members, batch))
    group = plan.group if parts <= _MANY_PARTS else 1
    block_group, block_v_dim = triton.next_power_of_2(group), triton.next_power_of_2(v_head_dim)
    merge_kernel[(batch, heads // group)](
        plan.partial,
        plan.partial_lse,
        plan.parts,
        out,
        plan.runs_taken,
        sinks,
        out.stride(0),
        out.stride(1),
        GROUP=group,
        V_HEAD_DIM=v_head_dim,
        BLOCK_LEVELS=plan.parts.shape[2],
        BLOCK_PARTS=min(triton.next_power_of_2(parts), max(1, _ELEMENTS // (block_group * block_v_dim))),
        BLOCK_GROUP=block_group,
        BLOCK_V_DIM=block_v_dim,
        PDL=plan.dependent_launch,
        num_warps=_WARPS,
        **({"launch_pdl": True} if plan.dependent_launch else {}),
    )
