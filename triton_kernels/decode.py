# SPDX-License-Identifier: Apache-2.0
"""Decode attention over contiguous KV: one query token a request against the request's own range of memory.

    out = sum_j p_j v_j / sum_j p_j,   p_j = exp(s_j - max s),   s_j = cap(scaling * q . k_j)

over the tokens j that the last one sees, with cap(x) = logit_cap * tanh(x / logit_cap), or x where no cap is set. A
sink adds exp(sink - max s) to the denominator (arXiv 2309.17453). A token's K is found at
`base + slot * slot_stride + position * token_stride`.

Split over the tokens: each worker (tiles.py) keeps a running maximum and sum (online softmax, arXiv 1805.02867). Where
its run holds a request whole, it writes the output; else a partial result, which merge.py combines
(arXiv 2205.14135, section 3.1).

Tiles are read through the tensor memory accelerator (TMA), by descriptors of the whole arena. What follows a request
need not be memory at all, so its last tile is moved back to end where the request ends, and what the tile before had is
masked. Requests shorter than a tile are read by masked loads.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents
from triton.tools.tensor_descriptor import TensorDescriptor

from .merge import merge_kernel
from .numerics import LOG2E, tanh
from .tiles import DecodePlan, first_visible, run_start, workers_used

# Parts of a request that the merge reads at a time, at least and at most.
_LEAST_PARTS, _MOST_PARTS = 8, 64


@triton.jit
def _attend(
    query,  # [group, head_dim]
    keys,  # [head_dim, tile]
    values,  # [tile, v_head_dim]
    visible,  # [tile]
    top,
    denominator,
    sums,
    scale,
    LOGIT_CAP: tl.constexpr,
):
    """One tile of tokens: the running maximum, denominator and sums after it."""
    scores = tl.dot(query, keys.to(query.dtype), input_precision="ieee") * scale
    if LOGIT_CAP > 0:
        scores = LOGIT_CAP * tanh(scores / LOGIT_CAP)
    scores *= LOG2E
    # Each tile holds a visible token, so the maximum is finite from the first one on.
    scores = tl.where(visible[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    fade = tl.exp2(top - new_top)
    denominator = denominator * fade + tl.sum(weights, 1)
    sums = tl.dot(weights.to(query.dtype), values.to(query.dtype), sums * fade[:, None], input_precision="ieee")
    return new_top, denominator, sums


@triton.jit
def decode_kernel(
    q,  # [batch, heads, head_dim]
    k,  # [slots, slot_tokens, kv_heads, head_dim]
    v,  # [slots, slot_tokens, kv_heads, v_head_dim]
    k_rows,  # descriptor of k as [slots * slot_tokens, kv_heads * head_dim], or None
    v_rows,  # descriptor of v, likewise
    out,  # [batch, heads, v_head_dim], written
    partial,  # [workers, 2, heads, v_head_dim] float32, written: outputs over one part of a request
    partial_lse,  # [workers, 2, heads] float32, written: log2 of their denominators
    slots,  # [batch]
    lengths,  # [batch]
    tile_ends,  # [batch]
    first_requests,  # [workers]
    sinks,  # [heads] or None
    k_scale,  # [1] float32 or None
    v_scale,  # [1] float32 or None
    batch,
    slot_tokens,
    q_batch_stride,
    q_head_stride,
    k_slot_stride,
    k_token_stride,
    k_head_stride,
    v_slot_stride,
    v_token_stride,
    v_head_stride,
    out_batch_stride,
    out_head_stride,
    scaling,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    LOGIT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a KV head and worker. The programs of a worker's heads run side by side: they read the same tokens'
    neighbouring heads, so that memory sees runs of a token's whole K."""
    kv_head = tl.program_id(0)
    worker = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    total = tl.load(tile_ends + batch - 1)
    used = workers_used(total, tl.num_programs(1))
    if worker >= used:
        return
    tile = run_start(worker, total, used)
    end = run_start(worker + 1, total, used)
    request = tl.load(first_requests + worker)

    rows = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    tokens = tl.arange(0, TILE)
    row_mask = rows < GROUP
    heads = kv_head * GROUP + rows
    scale = scaling
    if k_scale is not None:
        scale *= tl.load(k_scale)
    v_factor = 1.0
    if v_scale is not None:
        v_factor = tl.load(v_scale)
    k_offsets = tokens[None, :] * k_token_stride + dims[:, None]
    v_offsets = tokens[:, None] * v_token_stride + v_dims[None, :]

    while tile < end:
        request_end = tl.load(tile_ends + request)
        request_start = tl.load(tile_ends + request - 1, mask=request > 0, other=0)
        length = tl.load(lengths + request).to(tl.int32)
        slot = tl.load(slots + request).to(tl.int64)
        seen = first_visible(length, WINDOW)
        offset = seen // TILE - request_start
        first = tile + offset
        last = tl.minimum(end, request_end) + offset
        query = tl.load(
            q + request.to(tl.int64) * q_batch_stride + heads[:, None] * q_head_stride + dims[None, :],
            mask=row_mask[:, None] & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        k_base = k + slot * k_slot_stride + kv_head * k_head_stride
        v_base = v + slot * v_slot_stride + kv_head * v_head_stride

        top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
        denominator = tl.zeros([BLOCK_GROUP], tl.float32)
        sums = tl.zeros([BLOCK_GROUP, BLOCK_V_DIM], tl.float32)
        in_rows = first
        if k_rows is not None:
            in_rows = tl.where(length >= TILE, last, first)
            row = (slot * slot_tokens).to(tl.int32)
            for index in range(first, in_rows):
                position = tl.minimum(index * TILE, length - TILE)
                at = row + position
                visible = position + tokens >= tl.maximum(index * TILE, seen)
                top, denominator, sums = _attend(
                    query, k_rows.load([at, kv_head * HEAD_DIM]).T, v_rows.load([at, kv_head * V_HEAD_DIM]),
                    visible, top, denominator, sums, scale, LOGIT_CAP,
                )  # fmt: skip
        for index in range(in_rows, last):
            position = index * TILE
            valid = position + tokens < length
            keys = tl.load(
                k_base + position.to(tl.int64) * k_token_stride + k_offsets,
                mask=valid[None, :] & (dims[:, None] < HEAD_DIM),
                other=0.0,
            )
            values = tl.load(
                v_base + position.to(tl.int64) * v_token_stride + v_offsets,
                mask=valid[:, None] & (v_dims[None, :] < V_HEAD_DIM),
                other=0.0,
            )
            top, denominator, sums = _attend(
                query, keys, values, valid & (position + tokens >= seen), top, denominator, sums, scale, LOGIT_CAP,
            )  # fmt: skip

        store_mask = row_mask[:, None] & (v_dims[None, :] < V_HEAD_DIM)
        if request_start == request_end:
            pass  # merge.py fills it in
        elif (tile == request_start) & (end >= request_end):
            if sinks is not None:
                sink = tl.load(sinks + heads, mask=row_mask, other=0.0).to(tl.float32)
                denominator += tl.exp2(sink * LOG2E - top)
            result = sums * (v_factor / denominator)[:, None]
            tl.store(
                out + request.to(tl.int64) * out_batch_stride + heads[:, None] * out_head_stride + v_dims[None, :],
                result.to(out.dtype.element_ty),
                mask=store_mask,
            )
        else:
            # A run has at most two parts of requests: one that began before it, and one that goes on after it.
            at = (worker * 2 + tl.where(tile > request_start, 0, 1)) * (tl.num_programs(0) * GROUP) + heads
            tl.store(partial_lse + at, top + tl.log2(denominator), mask=row_mask)
            tl.store(
                partial + at[:, None] * V_HEAD_DIM + v_dims[None, :],
                sums * (v_factor / denominator)[:, None],
                mask=store_mask,
            )
        tile = tl.minimum(end, request_end)
        request += 1


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    plan: DecodePlan,
    *,
    scaling: float,
    logit_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Attention of each request's last token over its tokens [0, length), or those in the plan's window.

    No value on the device is read by the host, and nothing is allocated: the calls may be captured in a CUDA graph that
    is replayed with other slots and lengths.

    Args:
        q: [batch, heads, head_dim].
        k: [slots, slot_tokens, kv_heads, head_dim], any strides but 1 in the last dimension; of q's dtype or float8.
        v: [slots, slot_tokens, kv_heads, v_head_dim], likewise.
        out: [batch, heads, v_head_dim], written; 0 for requests of length 0.
        slots: [batch] int32 or int64.
        lengths: [batch] int32 or int64, in tokens, the last one included.
        plan: made from the same lengths.
        scaling: factor of q . k.
        logit_cap: bound of the scores, by tanh; 0: none.
        sinks: [heads]: a score a head that takes part in the softmax without a value.
        k_scale, v_scale: [1] float32: what stored keys and values are to be multiplied by.
    """
    batch, heads, head_dim = q.shape
    kv_heads, v_head_dim = v.shape[2:]
    config, workers = plan.config(batch), plan.workers(batch)
    k_rows, v_rows = _rows(k, config.tile), _rows(v, config.tile)
    if k_rows is None or v_rows is None:
        k_rows = v_rows = None
    # The merge is set up while the decode kernel still runs (programmatic dependent launch).
    pdl = {"launch_pdl": True} if plan.overlap_merge else {}
    decode_kernel[(kv_heads, workers)](
        q,
        k,
        v,
        k_rows,
        v_rows,
        out,
        plan.partial,
        plan.partial_lse,
        slots,
        lengths,
        plan.tile_ends,
        plan.first_requests,
        sinks,
        k_scale,
        v_scale,
        batch,
        k.shape[1],
        q.stride(0),
        q.stride(1),
        *k.stride()[:3],
        *v.stride()[:3],
        out.stride(0),
        out.stride(1),
        scaling,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        LOGIT_CAP=logit_cap,
        WINDOW=plan.window,
        TILE=config.tile,
        BLOCK_GROUP=max(16, triton.next_power_of_2(heads // kv_heads)),
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_V_DIM=triton.next_power_of_2(v_head_dim),
        PDL=plan.overlap_merge,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    merge_kernel[(batch, heads)](
        plan.partial,
        plan.partial_lse,
        out,
        plan.tile_ends,
        sinks,
        workers,
        out.stride(0),
        out.stride(1),
        V_HEAD_DIM=v_head_dim,
        BLOCK_PARTS=min(max(triton.next_power_of_2(workers // batch + 1), _LEAST_PARTS), _MOST_PARTS),
        BLOCK_V_DIM=triton.next_power_of_2(v_head_dim),
        PDL=plan.overlap_merge,
        num_warps=4,
        **pdl,
    )


def _rows(cache: torch.Tensor, tile: int) -> TensorDescriptor | None:
    """A TMA descriptor of K or V of all slots as rows of tokens; None where TMA cannot read a head's tile by itself:
    heads that are padded to a power of two, and strides that are no multiples of 16 bytes.

    Args:
        cache: [slots, slot_tokens, kv_heads, head_dim].
        tile: tokens read at a time.
    """
    slots, tokens, heads, dim = cache.shape
    step = cache.stride(1) * cache.element_size()
    whole = cache.stride()[2:] == (dim, 1) and cache.stride(0) == tokens * cache.stride(1)
    if not whole or dim != triton.next_power_of_2(dim) or step % 16 or cache.data_ptr() % 16:
        return None
    return TensorDescriptor(cache, [slots * tokens, heads * dim], [cache.stride(1), 1], [tile, dim])
