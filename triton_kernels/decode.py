# SPDX-License-Identifier: Apache-2.0
"""Decode attention over contiguous KV: one query token a request against the request's own range of memory.

    out = sum_j p_j v_j / sum_j p_j,   p_j = exp(s_j - max s),   s_j = cap(scaling * q . k_j)

over the tokens j that the last one sees, with cap(x) = logit_cap * tanh(x / logit_cap), or x where no cap is set. A
sink adds exp(sink - max s) to the denominator (arXiv 2309.17453). A token's K is found at
`base + slot * slot_stride + position * token_stride`.

The tokens are cut into tiles, and the tiles dealt to workers in equal runs (tiles.py). A worker goes through its run in
one loop, across the borders of requests, so that the next tiles are always on their way from memory. Where its run
holds all that a request reads, it writes the output; else a partial result, which merge.py combines.

Stretches of tokens that several requests share are read by programs of their own, beside the others: a tile once for
all of their query heads (docs/design.md, "Tree-aware decode"); on Hopper by another kernel, shared_hopper.py. What a
request does not share it reads by itself, as if it shared nothing; on Hopper, where that can, by decode_hopper.py.

Tiles are read through the tensor memory accelerator (TMA), by descriptors of the whole arena; by plain loads where TMA
cannot. What follows a request need not be memory at all, so its last tile is moved back to end where the request ends,
and what the tile before had is masked. Requests shorter than a tile are read by masked loads, one worker each.
"""

import torch
import triton
import triton.language as tl

from .checks import FLOATS, Strides, check_attention, check_cap, check_scales, check_scaling, check_vector
from .decode_hopper import check_own, decode_hopper_attention
from .decode_plan import RUN_FIELDS, TASK_FIELDS, DecodePlan
from .decode_tiles import attend, begin_work, by_dim, by_head, load_tile
from .merge import merge_parts
from .numerics import LOG2E, fetch_ahead
from .rows import in_rows, triton_rows
from .shared_hopper import check_tasks, shared_hopper_attention
from .shared_tasks import attend_shared
from .tiles import first_visible

MOST_COLUMNS = 8
"""Query heads of a KV head that are columns of products; more are rows. Of 16 columns or more, Triton 3.6 makes
products of Hopper's warp groups: in these loops they take more shared memory, with 32 columns more than there is, and
with 16 and two stages they were wrong."""


@triton.jit
def _request(requests, rank, there, RUN_FIELDS: tl.constexpr):
    """What is to be known of a request: RUN_FIELDS in decode_plan.py. Zeros if it is not there."""
    fields = requests + rank * RUN_FIELDS
    return (
        tl.load(fields, there, 0),
        tl.load(fields + 1, there, 0),
        tl.load(fields + 2, there, 0),
        tl.load(fields + 3, there, 0),
        tl.load(fields + 4, there, 0),
    )


@triton.jit
def _attend_own(
    q, k, v, k_rows, v_rows, out, partial, partial_lse, requests, rank_ends, runs, sinks, worker, kv_head,
    kv_heads, slot_tokens, q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride,
    v_token_stride, v_head_stride, out_batch_stride, out_head_stride, scale, v_factor,
    RUN_FIELDS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    LOGIT_CAP: tl.constexpr, TILE: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr, COLUMNS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The worker's run of the tiles that requests read by themselves: a query head is a column, or a row."""
    run = runs + worker * 4
    tile = tl.load(run + 2)
    end = tl.load(run + 3)
    rows = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    tokens = tl.arange(0, TILE)
    row_mask = rows < GROUP
    heads = kv_head * GROUP + rows
    first_rank = tl.load(run)
    last_rank = tl.load(run + 1)
    if AHEAD:
        fetch_ahead(requests + first_rank * RUN_FIELDS)
        fetch_ahead(rank_ends + first_rank)
        begin_work()
    side_heads, there = by_head(heads, COLUMNS), by_head(row_mask, COLUMNS)
    query_dims, out_dims = by_dim(dims, COLUMNS), by_dim(v_dims, COLUMNS)
    query_mask = there & (query_dims < HEAD_DIM)
    query_at = q + side_heads * q_head_stride + query_dims
    store_mask = there & (out_dims < V_HEAD_DIM)
    lines = tl.arange(0, BLOCK_GROUP * BLOCK_DIM // 64) * 64 % (GROUP * HEAD_DIM)
    for rank in tl.range(first_rank, last_rank + 1, flatten=True):
        request, own_start, length, slot, alone = _request(requests, rank, True, RUN_FIELDS)
        query = tl.load(query_at + request.to(tl.int64) * q_batch_stride, query_mask, 0.0)
        # The next one's comes to the L1 cache, so that its first tile does not wait for it.
        if AHEAD:
            next_request = tl.load(requests + tl.minimum(rank + 1, last_rank) * RUN_FIELDS)
            fetch_ahead(q + next_request.to(tl.int64) * q_batch_stride + kv_head * GROUP * q_head_stride + lines)
            fetch_ahead(requests + tl.minimum(rank + 2, last_rank) * RUN_FIELDS)
        begin = tl.load(rank_ends + rank)
        stop = tl.load(rank_ends + rank + 1)
        k_base = k + slot.to(tl.int64) * k_slot_stride + kv_head * k_head_stride
        v_base = v + slot.to(tl.int64) * v_slot_stride + kv_head * v_head_stride
        row = slot * slot_tokens
        first = tl.maximum(tile, begin)
        last = tl.minimum(end, stop)
        top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
        denominator = tl.zeros([BLOCK_GROUP], tl.float32)
        sums = tl.zeros([BLOCK_V_DIM, BLOCK_GROUP] if COLUMNS else [BLOCK_GROUP, BLOCK_V_DIM], tl.float32)
        tl.assume(first < last)
        for index in range(first, last):
            start = own_start + (index - begin) * TILE
            position = tl.minimum(start, length - TILE)
            keys, values = load_tile(
                k_rows, v_rows, k_base, v_base, row, position, kv_head, k_token_stride, v_token_stride,
                HEAD_DIM, V_HEAD_DIM, TILE, BLOCK_DIM, BLOCK_V_DIM,
            )  # fmt: skip
            top, denominator, sums = attend(
                query, keys, values, position + tokens >= start, top, denominator, sums, scale, LOGIT_CAP, COLUMNS
            )
        if (alone != 0) & (tile <= begin) & (end >= stop):
            if sinks is not None:
                sink = tl.load(sinks + heads, mask=row_mask, other=0.0).to(tl.float32)
                denominator += tl.exp2(sink * LOG2E - top)
            factor = by_head(v_factor / denominator, COLUMNS)
            tl.store(
                out + request.to(tl.int64) * out_batch_stride + side_heads * out_head_stride + out_dims,
                (sums * factor).to(out.dtype.element_ty),
                mask=store_mask,
            )
        else:
            # A run has at most two requests of which another run has a part: its first, which began before it, and its
            # last. The other parts are of requests whose beginning they share.
            at = (rank + worker) * (kv_heads * GROUP) + heads
            tl.store(partial_lse + at, top + tl.log2(denominator), mask=row_mask)
            factor = by_head(v_factor / denominator, COLUMNS)
            places = by_head(at, COLUMNS)
            tl.store(partial + places * V_HEAD_DIM + out_dims, sums * factor, mask=store_mask)


@triton.jit
def _attend_short(
    q, k, v, out, slots, lengths, short_requests, shorts, sinks, worker, workers, kv_head, q_batch_stride,
    q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride, v_token_stride, v_head_stride,
    out_batch_stride, out_head_stride, scale, v_factor,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, LOGIT_CAP: tl.constexpr,
    WINDOW: tl.constexpr, TILE: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Requests shorter than a tile, dealt to the workers one by one."""
    rows = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    tokens = tl.arange(0, TILE)
    row_mask = rows < GROUP
    heads = kv_head * GROUP + rows
    side_heads, there = by_head(heads, COLUMNS), by_head(row_mask, COLUMNS)
    query_dims, out_dims = by_dim(dims, COLUMNS), by_dim(v_dims, COLUMNS)
    for index in tl.range(worker, shorts, workers, num_stages=1):
        request = tl.load(short_requests + index)
        length = tl.load(lengths + request).to(tl.int32)
        slot = tl.load(slots + request).to(tl.int64)
        valid = tokens < length
        query = tl.load(
            q + request.to(tl.int64) * q_batch_stride + side_heads * q_head_stride + query_dims,
            mask=there & (query_dims < HEAD_DIM),
            other=0.0,
        )
        keys = tl.load(
            k + slot * k_slot_stride + kv_head * k_head_stride + tokens[None, :] * k_token_stride + dims[:, None],
            mask=valid[None, :] & (dims[:, None] < HEAD_DIM),
            other=0.0,
        )
        values = tl.load(
            v + slot * v_slot_stride + kv_head * v_head_stride + tokens[:, None] * v_token_stride + v_dims[None, :],
            mask=valid[:, None] & (v_dims[None, :] < V_HEAD_DIM),
            other=0.0,
        )
        top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
        denominator = tl.zeros([BLOCK_GROUP], tl.float32)
        sums = tl.zeros([BLOCK_V_DIM, BLOCK_GROUP] if COLUMNS else [BLOCK_GROUP, BLOCK_V_DIM], tl.float32)
        visible = valid & (tokens >= first_visible(length, WINDOW))
        top, denominator, sums = attend(query, keys, values, visible, top, denominator, sums, scale, LOGIT_CAP, COLUMNS)
        if sinks is not None:
            sink = tl.load(sinks + heads, mask=row_mask, other=0.0).to(tl.float32)
            denominator += tl.exp2(sink * LOG2E - top)
        factor = by_head(v_factor / denominator, COLUMNS)
        tl.store(
            out + request.to(tl.int64) * out_batch_stride + side_heads * out_head_stride + out_dims,
            (sums * factor).to(out.dtype.element_ty),
            mask=there & (out_dims < V_HEAD_DIM),
        )


@triton.jit(do_not_specialize_on_alignment=["slots", "lengths"])
def decode_kernel(
    q,  # [batch, heads, head_dim]
    k,  # [slots, slot_tokens, kv_heads, head_dim]
    v,  # [slots, slot_tokens, kv_heads, v_head_dim]
    k_rows,  # descriptor of k as [slots * slot_tokens, kv_heads * head_dim], or None
    v_rows,  # descriptor of v, likewise
    out,  # [batch, heads, v_head_dim], written
    partial,  # [places, heads, v_head_dim] float32, written: outputs over one part of what a request reads
    partial_lse,  # [places, heads] float32, written: log2 of their denominators
    slots,  # [batch]
    lengths,  # [batch]
    requests,  # [batch, RUN_FIELDS]
    short_requests,  # [batch]
    shorts,  # [1]
    rank_ends,  # [batch + 1]
    runs,  # [workers, 4]
    header,  # [HEADER], or None
    tasks,  # [tasks, TASK_FIELDS], or None
    order,  # [batch]
    task_runs,  # [workers, 4]
    sinks,  # [heads] or None
    k_scale,  # [1] float32 or None
    v_scale,  # [1] float32 or None
    own_workers,
    own_places,
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
    RUN_FIELDS: tl.constexpr,
    TASK_FIELDS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    LOGIT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARED_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a KV head and worker: first those for what requests read by themselves, which wait for memory, then
    those for shared tasks, which wait for tensor cores; a multiprocessor runs one of each. The programs of a worker's
    heads run side by side: they read the same tokens' neighbouring heads, so that memory sees runs of a token's whole
    K."""
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    worker = tl.program_id(1)
    scale = scaling
    if k_scale is not None:
        scale *= tl.load(k_scale)
    v_factor = 1.0
    if v_scale is not None:
        v_factor = tl.load(v_scale)
    if worker < own_workers:
        _attend_own(
            q, k, v, k_rows, v_rows, out, partial, partial_lse, requests, rank_ends, runs, sinks, worker,
            kv_head, kv_heads, slot_tokens, q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride,
            v_slot_stride, v_token_stride, v_head_stride, out_batch_stride, out_head_stride, scale, v_factor,
            RUN_FIELDS, GROUP, HEAD_DIM, V_HEAD_DIM, LOGIT_CAP, TILE, BLOCK_GROUP, BLOCK_DIM, BLOCK_V_DIM, COLUMNS,
            PDL,
        )  # fmt: skip
        _attend_short(
            q, k, v, out, slots, lengths, short_requests, tl.load(shorts), sinks, worker, own_workers, kv_head,
            q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride, v_token_stride,
            v_head_stride, out_batch_stride, out_head_stride, scale, v_factor,
            GROUP, HEAD_DIM, V_HEAD_DIM, LOGIT_CAP, WINDOW, TILE, BLOCK_GROUP, BLOCK_DIM, BLOCK_V_DIM, COLUMNS,
        )  # fmt: skip
    elif tasks is not None:
        attend_shared(
            q, k, v, k_rows, v_rows, tasks, order, task_runs, partial, partial_lse, own_places, tl.load(header + 1),
            worker - own_workers, tl.num_programs(1) - own_workers, kv_head, kv_heads, slot_tokens, q_batch_stride,
            q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride, v_token_stride, v_head_stride,
            scale, v_factor,
            TASK_FIELDS, GROUP, HEAD_DIM, V_HEAD_DIM, LOGIT_CAP, TILE, BLOCK_ROWS, BLOCK_DIM, BLOCK_V_DIM,
            SHARED_STAGES, PDL,
        )  # fmt: skip


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

    On Hopper what comes before may still run when the call begins (launches.py), and all of a request's tokens but the
    newest are read then: they are those of earlier steps. Whoever stores several tokens of a request, and then decodes
    it, launches a kernel between that lets nobody begin before it ends, as `plan.update` does.

    Args:
        q: [batch, heads, head_dim] bfloat16, float16 or float32, any strides but 1 in the last dimension.
        k: [slots, slot_tokens, kv_heads, head_dim], likewise, of q's dtype or float8 e4m3.
        v: [slots, slot_tokens, kv_heads, v_head_dim], likewise, of k's dtype.
        out: [batch, heads, v_head_dim], likewise, of q's dtype, written; 0 for requests of length 0.
        slots: [batch] int32 or int64.
        lengths: [batch] int32 or int64, in tokens, the last one included.
        plan: made from the same slots and lengths.
        scaling: factor of q . k, a positive number.
        logit_cap: bound of the scores, by tanh, a positive number; 0: none.
        sinks: [heads]: a score a head that takes part in the softmax without a value.
        k_scale, v_scale: [1] float32: what stored keys and values are to be multiplied by.

    Raises:
        ValueError: an argument has another shape, dtype, layout or device than this or the plan's; the scaling is not
            positive, the cap negative, or one of them not finite; or a kernel for Hopper, which the plan is made for,
            cannot do what is asked for.
        TypeError: one is no tensor.
    """
    strides = check_attention(q, k, v, out, slots, lengths, plan.heads, plan.batch, None)
    device = plan.heads.device
    if sinks is not None:
        check_vector("sinks", sinks, plan.heads.kv_heads * plan.group, FLOATS, device)
    check_scales(k_scale, v_scale, device)
    check_scaling(scaling)
    check_cap(logit_cap)
    if plan.hopper:
        if logit_cap or k_scale is not None or v_scale is not None:
            raise ValueError("logit_cap should be 0, k_scale and v_scale None, where decode_hopper.py reads tokens")
        check_own(q, k, v, plan)
        shared = plan.shared_by(plan.batch)
        if shared is not None:
            check_tasks(plan)
        decode_hopper_attention(q, k, v, out, slots, lengths, plan, strides, scaling, sinks)
        if shared is not None:
            shared_hopper_attention(q, k, v, plan, scaling)
    else:
        _launch(q, k, v, out, slots, lengths, plan, strides, scaling, logit_cap, sinks, k_scale, v_scale)
    merge_parts(plan, out, sinks)


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    plan: DecodePlan,
    strides: tuple[Strides, ...],
    scaling: float,
    logit_cap: float,
    sinks: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    """The kernel of this file."""
    kv_heads, group, head_dim, v_head_dim, _, _ = plan.heads
    q_stride, k_stride, v_stride, out_stride = strides
    config, here = plan.config, plan.shared_by(plan.batch)
    k_rows = v_rows = None
    # A tile is a block of whole powers of two.
    whole = head_dim == triton.next_power_of_2(head_dim) and v_head_dim == triton.next_power_of_2(v_head_dim)
    if whole and in_rows(k) and in_rows(v):
        k_rows, v_rows = triton_rows(k, config.tile), triton_rows(v, config.tile)
    # A kernel is set up while the one before it still runs (programmatic dependent launch).
    pdl = {"launch_pdl": True} if plan.dependent_launch else {}
    columns = group <= MOST_COLUMNS
    decode_kernel[(kv_heads, plan.workers + (here.workers if here else 0))](
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
        plan.requests,
        plan.short_requests,
        plan.shorts,
        plan.rank_ends,
        plan.runs,
        here and here.header,
        here and here.tasks,
        here and here.order,
        here and here.runs,
        sinks,
        k_scale,
        v_scale,
        plan.workers,
        plan.own_places,
        k.shape[1],
        *q_stride[:2],
        *k_stride[:3],
        *v_stride[:3],
        *out_stride[:2],
        scaling,
        RUN_FIELDS=RUN_FIELDS,
        TASK_FIELDS=TASK_FIELDS,
        GROUP=group,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        LOGIT_CAP=logit_cap,
        WINDOW=plan.window,
        TILE=config.tile,
        BLOCK_ROWS=max(16, triton.next_power_of_2(here.members * group)) if here else 16,
        BLOCK_GROUP=MOST_COLUMNS if columns else max(16, triton.next_power_of_2(group)),
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_V_DIM=triton.next_power_of_2(v_head_dim),
        COLUMNS=columns,
        SHARED_STAGES=config.shared_stages,
        PDL=plan.dependent_launch,
        num_warps=config.warps,
        num_stages=config.stages,
        **pdl,
    )
