# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill attention on Hopper: prefill.py's mathematics by warps with roles (arXiv 2407.08608).

    producer, 1 warp:          copies Q, K and V tiles to shared memory (TMA), as far ahead as there is room
    two consumers, 4 warps:    scores, softmax and sums of 64 rows each

Full and empty barriers of shared memory's stages are the only words between them. A consumer computes the scores of a
tile (tensor cores) while it takes the softmax of the one before; the consumers take turns at the tensor cores, so that
one's softmax meets the other's products.

A program a multiprocessor takes items (prefill_hopper_plan.py) by turns. Tiles of tokens go from an item's last to its
first; a request's last, which would pass its end, is moved back to end there and masked where it overlaps the one
before: no memory past a request's tokens is read.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .checks import (
    CONTIGUOUS,
    FLOATS,
    LAST_CONTIGUOUS,
    TMA_BYTES,
    check_attention,
    check_scaling,
    check_vector,
    refused,
    unaligned,
)
from .hopper_steps import operand as operand_of
from .hopper_steps import own_sums, packed, scores, softmax
from .prefill_hopper_plan import FIELDS, ROWS, TILE, HopperPlan
from .prefill_merge import merge_prefill
from .rows import MOST_ROWS, gluon_rows

_HEAD_DIMS = (64, 128)
_DTYPES = (torch.bfloat16, torch.float16)

CONSUMERS = 2
STAGES = 2
"""Tiles of K, and of V, in shared memory."""

REGISTERS, PRODUCER_REGISTERS = 240, 24
"""Of a thread."""


@gluon.jit
def _item(round_):
    """The item that this program takes in a round: forth and back, since items get smaller."""
    me = gl.program_id(0)
    programs = gl.num_programs(0)
    return round_ * programs + gl.where(round_ % 2 == 1, programs - 1 - me, me)


@gluon.jit
def _rounds(items):
    """Rounds in which this program has an item."""
    whole = items // gl.num_programs(0)
    return whole + (_item(whole) < items).to(gl.int32)


@gluon.jit
def _record(records, round_, FIELDS: gl.constexpr, KV_HEADS: gl.constexpr):
    """An item's KV head, and where its record is."""
    item = _item(round_)
    return item % KV_HEADS, records + item // KV_HEADS * FIELDS


@gluon.jit
def _producer(
    q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, records, slots,
    lengths, items, slot_tokens,
    FIELDS: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr,
    CONSUMERS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    BYTES: gl.constexpr = TILE * HEAD_DIM * 2
    k_step = 0
    v_step = 0
    for round_ in range(_rounds(items)):
        kv_head, at = _record(records, round_, FIELDS, KV_HEADS)
        request = gl.load(at + 2)
        row = gl.load(slots + request).to(gl.int32) * slot_tokens
        last_row = row + gl.maximum(gl.load(lengths + request).to(gl.int32) - TILE, 0)
        column = kv_head * HEAD_DIM
        token = gl.load(at) + gl.load(at + 3) // GROUP
        begin = gl.load(at + 4)
        tiles = gl.load(at + 5) - begin
        row += begin * TILE
        for back in range(tiles + 1):
            # V comes a tile later: the scores are first.
            if back < tiles:
                stage = k_step % STAGES
                mbarrier.wait(k_empty.index(stage), ((k_step // STAGES) & 1) ^ 1)
                mbarrier.expect(k_full.index(stage), BYTES)
                position = gl.minimum(row + (tiles - 1 - back) * TILE, last_row)
                tma.async_copy_global_to_shared(k_rows, [position, column], k_full.index(stage), k_smem.index(stage))
                k_step += 1
            # Tokens of the next item may come while the consumers still need the queries of this one.
            if q_rows is not None and back == 0:
                mbarrier.wait(q_empty, (round_ & 1) ^ 1)
                mbarrier.expect(q_full, CONSUMERS * ROWS * HEAD_DIM * 2)
                for consumer in gl.static_range(CONSUMERS):
                    tma.async_copy_global_to_shared(
                        q_rows,
                        [token + consumer * (ROWS // GROUP), kv_head * GROUP, 0],
                        q_full,
                        q_smem.index(consumer)._reinterpret(q_smem.dtype, q_rows.block_shape, q_rows.layout),
                    )
            if back > 0:
                stage = v_step % STAGES
                mbarrier.wait(v_empty.index(stage), ((v_step // STAGES) & 1) ^ 1)
                mbarrier.expect(v_full.index(stage), BYTES)
                position = gl.minimum(row + (tiles - back) * TILE, last_row)
                tma.async_copy_global_to_shared(v_rows, [position, column], v_full.index(stage), v_smem.index(stage))
                v_step += 1


@gluon.jit
def _store(
    out, sums, token, new, first_row, kv_head,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """A consumer's rows of a request whose new tokens begin at `token`, by 16 bytes a thread."""
    rows = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LAYOUT))
    at = ((token + rows // GROUP) * (KV_HEADS * GROUP) + kv_head * GROUP + rows % GROUP).to(gl.int64) * HEAD_DIM
    result = gl.convert_layout(sums.to(out.dtype.element_ty), LAYOUT)
    gl.store(out + at.expand_dims(1) + dims.expand_dims(0), result, mask=(rows // GROUP < new).expand_dims(1))


@gluon.jit
def _store_part(partial, partial_lse, row, sums, lse, HEAD_DIM: gl.constexpr, ROWS: gl.constexpr):
    """A consumer's part of its rows, which are one after the other from `row` on."""
    layout: gl.constexpr = sums.type.layout
    gl.store(partial_lse + row + gl.arange(0, ROWS, lse.type.layout), lse)
    at = (row + gl.arange(0, ROWS, gl.SliceLayout(1, layout))).to(gl.int64) * HEAD_DIM
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    gl.store(partial + at.expand_dims(1) + dims.expand_dims(0), sums)


@gluon.jit
def _consumer(
    q_rows, q, out, partial, partial_lse, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    my_turn, other_turn, records, lengths, sinks, items, q_token_stride, q_head_stride, scaling,
    CONSUMER: gl.constexpr,
    FIELDS: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr,
    CONSUMERS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    WARPS: gl.constexpr = ROWS // 16
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TILE, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    S_COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    # 16 bytes a thread.
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [WARPS, 1], [1, 0])
    L_ROWS: gl.constexpr = gl.SliceLayout(1, LOAD)
    dtype: gl.constexpr = k_smem.dtype

    scale = scaling * 1.4426950408889634
    mine = q_smem.index(CONSUMER)
    step = 0  # of V; K is one ahead
    turn = 0
    for round_ in range(_rounds(items)):
        # The producer has read it before: it is in the L1 cache.
        kv_head, record = _record(records, round_, FIELDS, KV_HEADS)
        new = gl.load(record + 1)
        length = gl.load(lengths + gl.load(record + 2)).to(gl.int32)
        first_row = gl.load(record + 3)
        begin = gl.load(record + 4)
        end = gl.load(record + 5)
        place = gl.load(record + 6)
        # Tiles before it are seen whole by all rows of the item.
        whole = (length - new + first_row // GROUP + 1) // TILE
        first_row += CONSUMER * ROWS

        if q_rows is not None:
            mbarrier.wait(q_full, round_ & 1)
        else:
            rows = first_row + gl.arange(0, ROWS, L_ROWS)
            tokens = rows // GROUP
            heads = kv_head * GROUP + rows % GROUP
            at = (gl.load(record) + tokens).to(gl.int64) * q_token_stride + heads * q_head_stride
            dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LOAD))
            query = gl.load(q + at.expand_dims(1) + dims.expand_dims(0), mask=(tokens < new).expand_dims(1), other=0.0)
            mine.store(query)
            fence_async_shared()
            gl.thread_barrier()

        rows = first_row + gl.arange(0, ROWS, S_ROWS)
        positions = length - new + gl.minimum(rows // GROUP, new - 1)
        sums = gl.zeros([ROWS, HEAD_DIM], gl.float32, O_LAYOUT)

        # The item's last tile is masked by its rows' positions, and where it was moved back over the one before.
        s = scores(mine, k_smem, k_full, step, S_LAYOUT, ROWS, TILE, STAGES)
        # An arrival is a warp group's: all its warps meet before it, so that none still reads what is given back.
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(k_empty.index(step % STAGES))
        from_token = (end - 1) * TILE
        columns = gl.minimum(from_token, gl.maximum(length - TILE, 0)) + gl.arange(0, TILE, S_COLUMNS)
        visible = (columns.expand_dims(0) <= positions.expand_dims(1)) & (columns >= from_token).expand_dims(0)
        s = gl.where(visible, s, float("-inf"))
        # A row may see nothing of this tile: then its maximum is a number all the same.
        top = gl.maximum(gl.max(s, 1), -1e30)
        base = top * scale
        weights = gl.exp2(gl.fma(s, gl.full_like(s, 0.0) + scale, gl.full_like(s, 0.0) - base.expand_dims(1)))
        denominator = own_sums(weights, True)
        p = packed(weights, dtype)

        # Tiles that some rows do not see whole.
        masked = gl.maximum(end - 1 - gl.maximum(whole, begin), 0)
        for index in range(masked):
            s = scores(mine, k_smem, k_full, step + 1, S_LAYOUT, ROWS, TILE, STAGES)
            mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
            operand = operand_of(p, P_LAYOUT, dtype)
            o = warpgroup_mma(operand, v_smem.index(step % STAGES), sums, is_async=True)
            s, sums, _operand_kept = warpgroup_mma_wait(0, [s, o, operand])
            mbarrier.arrive(k_empty.index((step + 1) % STAGES))
            mbarrier.arrive(v_empty.index(step % STAGES))
            step += 1
            columns = (end - 2 - index) * TILE + gl.arange(0, TILE, S_COLUMNS)
            s = gl.where(columns.expand_dims(0) <= positions.expand_dims(1), s, float("-inf"))
            p, fade, top, denominator = softmax(s, top, denominator, scale, True, dtype)
            sums = sums * gl.convert_layout(fade, O_ROWS).expand_dims(1)

        for _ in range(end - 1 - begin - masked):
            mbarrier.wait(my_turn, turn & 1)
            turn += 1
            s = scores(mine, k_smem, k_full, step + 1, S_LAYOUT, ROWS, TILE, STAGES)
            mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
            operand = operand_of(p, P_LAYOUT, dtype)
            o = warpgroup_mma(operand, v_smem.index(step % STAGES), sums, is_async=True)
            mbarrier.arrive(other_turn)
            s = warpgroup_mma_wait(1, [s])
            mbarrier.arrive(k_empty.index((step + 1) % STAGES))
            next_p, fade, top, denominator = softmax(s, top, denominator, scale, True, dtype)
            # Passed already: it keeps the assembler from waiting for the products before it takes the softmax.
            mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
            sums, _operand_kept = warpgroup_mma_wait(0, [o, operand])
            mbarrier.arrive(v_empty.index(step % STAGES))
            step += 1
            p = next_p
            sums = sums * gl.convert_layout(fade, O_ROWS).expand_dims(1)

        mbarrier.wait(v_full.index(step % STAGES), (step // STAGES) & 1)
        operand = operand_of(p, P_LAYOUT, dtype)
        o = warpgroup_mma(operand, v_smem.index(step % STAGES), sums, is_async=True)
        denominator = gl.convert_layout(gl.sum(denominator, 1), S_ROWS)
        if sinks is not None:
            # Where the result is a part, they come when parts are merged.
            sink = gl.load(sinks + kv_head * GROUP + rows % GROUP).to(gl.float32) * 1.4426950408889634
            denominator += gl.where(place < 0, gl.exp2(sink - top * scale), 0.0)
        factor = gl.convert_layout(1 / denominator, O_ROWS)
        sums, _operand_kept = warpgroup_mma_wait(0, [o, operand])
        mbarrier.arrive(v_empty.index(step % STAGES))
        step += 1
        if q_rows is not None:
            mbarrier.arrive(q_empty)

        sums = sums * factor.expand_dims(1)
        if place < 0:
            token = gl.load(record)
            _store(out, sums, token, new, first_row, kv_head, KV_HEADS, GROUP, HEAD_DIM, ROWS, LOAD)
        else:
            row = ((place * KV_HEADS + kv_head) * CONSUMERS + CONSUMER) * ROWS
            _store_part(partial, partial_lse, row, sums, top * scale + gl.log2(denominator), HEAD_DIM, ROWS)


@gluon.jit(do_not_specialize=["items"])
def prefill_hopper_kernel(
    q_rows,  # descriptor of q in blocks of a consumer's rows; None: consumers load them
    k_rows,  # descriptor of K as [slots * slot_tokens, kv_heads * head_dim]
    v_rows,  # descriptor of V, likewise
    q,  # [tokens, heads, head_dim]
    out,  # [tokens, heads, head_dim], written
    partial,  # [places * KV_HEADS, CONSUMERS * ROWS, head_dim] float32, written
    partial_lse,  # [places * KV_HEADS, CONSUMERS * ROWS] float32, written
    records,  # [records, FIELDS] int32
    slots,  # [batch]
    lengths,  # [batch]: tokens, the new ones included
    sinks,  # [heads] or None
    items,
    slot_tokens,
    q_token_stride,
    q_head_stride,
    scaling,
    FIELDS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TILE: gl.constexpr,
    CONSUMERS: gl.constexpr,
    ROWS: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One program a multiprocessor; ROWS are a consumer's."""
    dtype: gl.constexpr = k_rows.dtype
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_smem = gl.allocate_shared_memory(dtype, [CONSUMERS, ROWS, HEAD_DIM], gl.NVMMASharedLayout(128, 16))
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], k_rows.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], v_rows.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    # Two of their own: a barrier that is waited for and one that is told may share no allocation, or all warps meet.
    first_turn = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    second_turn = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=CONSUMERS)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=CONSUMERS)
        mbarrier.init(v_empty.index(stage), count=CONSUMERS)
    mbarrier.init(first_turn, count=1)
    mbarrier.init(second_turn, count=1)
    mbarrier.arrive(first_turn)
    fence_async_shared()

    # Written out in place: a tuple that has a name loses its constants.
    gl.warp_specialize(
        [
            (
                _consumer,
                (
                    q_rows, q, out, partial, partial_lse, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty,
                    v_full, v_empty, first_turn, second_turn, records, lengths, sinks, items, q_token_stride,
                    q_head_stride, scaling, 0, FIELDS, KV_HEADS, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES,
                ),
            ),
            (
                _consumer,
                (
                    q_rows, q, out, partial, partial_lse, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty,
                    v_full, v_empty, second_turn, first_turn, records, lengths, sinks, items, q_token_stride,
                    q_head_stride, scaling, 1, FIELDS, KV_HEADS, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES,
                ),
            ),
            (
                _producer,
                (
                    q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                    records, slots, lengths, items, slot_tokens,
                    FIELDS, KV_HEADS, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES,
                ),
            ),
        ],
        [ROWS // 16, 1],
        [REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def takes(*, head_dim: int, v_head_dim: int, dtype: torch.dtype, window: int = -1, logit_cap: float = 0.0) -> bool:
    """Whether the kernel computes such layers: heads of 64 or 128 elements in half precision, all tokens seen (a
    negative window) and no bound on the scores (0). The queries have to be of K's and V's dtype."""
    return head_dim == v_head_dim and head_dim in _HEAD_DIMS and dtype in _DTYPES and window < 0 and logit_cap == 0


def prefill_hopper_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    plan: HopperPlan,
    *,
    scaling: float,
    sinks: torch.Tensor | None = None,
) -> None:
    """Causal attention of each request's new tokens, its last, over all its tokens, where these are at least `TILE`;
    other requests' rows of `out` are left as they are.

    No value on the device is read by the host.

    Args:
        q: [tokens, heads, head_dim], the requests' new tokens one after the other; any strides of whole 16 bytes but 1
            in the last dimension.
        k: [slots, slot_tokens, kv_heads, head_dim] of q's dtype: slots one after the other, heads side by side.
        v: likewise.
        out: [tokens, heads, head_dim] of q's dtype, contiguous, written.
        slots: [batch] int32 or int64.
        lengths: [batch] int32 or int64, each request's tokens, prefix and new.
        plan: made from this batch.
        scaling: factor of q . k, a positive number.
        sinks: [heads]: a score a head that takes part in the softmax without a value.

    Raises:
        ValueError: an argument has another shape, dtype, layout or device than this or the plan's; or there is no such
            GPU.
        TypeError: one is no tensor.
    """
    check_scaling(scaling)
    q_token_stride, q_head_stride, slot_tokens = _check(q, k, v, out, slots, lengths, plan, sinks)
    if plan.items == 0:
        return
    prefill_hopper_kernel[(min(plan.items, plan.processors),)](
        _query_rows(q, plan.group),
        gluon_rows(k, TILE),
        gluon_rows(v, TILE),
        q,
        out,
        plan.partial,
        plan.partial_lse,
        plan.records,
        slots,
        lengths,
        sinks,
        plan.items,
        slot_tokens,
        q_token_stride,
        q_head_stride,
        scaling,
        FIELDS=FIELDS,
        KV_HEADS=plan.kv_heads,
        GROUP=plan.group,
        HEAD_DIM=plan.head_dim,
        TILE=TILE,
        CONSUMERS=CONSUMERS,
        ROWS=ROWS // CONSUMERS,
        STAGES=STAGES,
        REGISTERS=REGISTERS,
        PRODUCER_REGISTERS=PRODUCER_REGISTERS,
        num_warps=ROWS // CONSUMERS // 16,
    )
    if plan.merges:
        merge_prefill(plan, out, sinks)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    plan: HopperPlan,
    sinks: torch.Tensor | None,
) -> tuple[int, int, int]:
    """As `prefill_hopper_attention` says. Returns q's strides and a slot's tokens, which a launch is told."""
    kv_heads, group, head_dim, _, itemsize, device = plan.heads
    strides = check_attention(q, k, v, out, slots, lengths, plan.heads, plan.batch, plan.tokens)
    # Elements are of two bytes, in the plan as in K: so K is in half precision, and q is in the same.
    q_stride, k_stride, v_stride, _ = strides
    slot_tokens = k.shape[1]
    if head_dim not in _HEAD_DIMS:
        raise refused("q", q, ("tokens", "heads", "64 or 128"), _DTYPES, device, LAST_CONTIGUOUS)
    if (
        k_stride[2] != head_dim
        or v_stride[2] != head_dim
        or k_stride[0] != slot_tokens * k_stride[1]
        or v_stride[0] != slot_tokens * v_stride[1]
    ):
        raise ValueError(
            f"k and v are {list(k.shape)} with strides {list(k_stride)} and {list(v_stride)}, and should be slots one "
            "after the other and heads side by side"
        )
    if k.shape[0] * slot_tokens >= MOST_ROWS:
        raise ValueError(f"k and v are {list(k.shape)}, and should have fewer than {MOST_ROWS} tokens in all")
    steps = q_stride[0] | q_stride[1] | k_stride[1] | v_stride[1]
    if (steps * itemsize | q.data_ptr() | k.data_ptr() | v.data_ptr()) % TMA_BYTES:
        raise unaligned(q=q, k=k, v=v)
    if not out.is_contiguous():
        raise refused("out", out, out.shape, (q.dtype,), device, CONTIGUOUS)
    if sinks is not None:
        check_vector("sinks", sinks, kv_heads * group, FLOATS, device)
    if not plan.on_hopper:
        raise ValueError(f"the plan is for {q.device}, and should be for a GPU of compute capability 9")
    return q_stride[0], q_stride[1], slot_tokens


def _query_rows(q: torch.Tensor, group: int) -> TensorDescriptor | None:
    """Queries in blocks of a consumer's rows, where these are whole tokens."""
    rows = ROWS // CONSUMERS
    if rows % group:
        return None
    block = [rows // group, group, q.shape[2]]
    return TensorDescriptor(q, list(q.shape), list(q.stride()), block, gl.NVMMASharedLayout(128, 16, rank=3))
