# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill attention on Hopper: prefill.py's mathematics by warps with roles (arXiv 2407.08608).

    producer, 1 warp:        copies Q, K and V tiles to shared memory (TMA), as far ahead as there is room
    consumers, 4 or 8 warps: scores, softmax and sums of 64 or 128 rows each

    full and empty barriers of shared memory's stages are the only words between them. A consumer computes the scores of
    a tile (tensor cores) while it takes the softmax of the one before; two consumers take turns at the tensor cores, so
    that one's softmax meets the other's products.

A program takes one item (a tile of rows and a KV head) after the other. Tiles of tokens go from a request's last to its
first; the last, which would pass the request's end, is moved back to end there and masked where it overlaps the one
before: no memory past a request's tokens is read.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .hopper_steps import operand as operand_of
from .hopper_steps import own_sums, packed, scores, softmax

_FIELDS = 8
"""int32 words of a tile's record: first token in q, new tokens, length, first row in the arena, first row of the tile."""


@triton.jit
def hopper_plan_kernel(
    query_starts,  # [batch + 1] int32
    lengths,  # [batch]
    slots,  # [batch]
    records,  # [tiles, 8] int32, written
    total,  # [1] int32, written: tiles of this batch
    batch,
    slot_tokens,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """One program a tile. A request's last tiles come first: they see the most tokens."""
    tile = tl.program_id(0)
    requests = tl.arange(0, BLOCK_BATCH)
    mask = requests < batch
    starts = tl.load(query_starts + requests, mask=mask, other=0)
    stops = tl.load(query_starts + requests + 1, mask=mask, other=0)
    tiles = tl.cdiv((stops - starts) * GROUP, BLOCK_ROWS)
    ends = tl.cumsum(tiles, 0)
    if tile == 0:
        tl.store(total, tl.sum(tiles, 0))
    request = tl.sum(((ends <= tile) & mask).to(tl.int32), 0)
    if request < batch:
        end = tl.sum(tl.where(requests == request, ends, 0), 0)
        start = tl.load(query_starts + request)
        record = records + tile * 8
        tl.store(record, start)
        tl.store(record + 1, tl.load(query_starts + request + 1) - start)
        tl.store(record + 2, tl.load(lengths + request).to(tl.int32))
        tl.store(record + 3, (tl.load(slots + request) * slot_tokens).to(tl.int32))
        tl.store(record + 4, (end - 1 - tile) * BLOCK_ROWS)


@gluon.jit
def _item(round_, programs):
    """The item that this program takes in a round: forth and back, since items get smaller."""
    me = gl.program_id(0)
    return round_ * programs + gl.where(round_ % 2 == 1, programs - 1 - me, me)


@gluon.jit
def _rounds(total, kv_heads):
    """Rounds in which this program has an item."""
    items = gl.load(total) * kv_heads
    programs = gl.num_programs(0)
    whole = items // programs
    return whole + (_item(whole, programs) < items).to(gl.int32)


@gluon.jit
def _tiles(new, length, first_row, GROUP: gl.constexpr, BLOCK_ROWS: gl.constexpr, TILE: gl.constexpr):
    """Tiles of tokens that an item's rows see, and how many of them all its rows see whole."""
    first = length - new + first_row // GROUP
    end = length - new + gl.minimum((first_row + BLOCK_ROWS - 1) // GROUP, new - 1) + 1
    return gl.cdiv(end, TILE), (first + 1) // TILE


@gluon.jit
def _record(records, total, kv_heads, round_, programs):
    """An item's tile and KV head, and its tile's record; of a round that has none, some item's."""
    item = gl.minimum(_item(round_, programs), total * kv_heads - 1)
    record = records + item // kv_heads * 8
    return (
        item % kv_heads, gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3),
        gl.load(record + 4),
    )  # fmt: skip


@gluon.jit
def _producer(
    q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, records, total,
    kv_heads,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, CONSUMERS: gl.constexpr, ROWS: gl.constexpr,
    STAGES: gl.constexpr, Q_TMA: gl.constexpr,
):  # fmt: skip
    BYTES: gl.constexpr = TILE * HEAD_DIM * 2
    k_step = 0
    v_step = 0
    programs = gl.num_programs(0)
    tile_total = gl.load(total)
    for round_ in range(_rounds(total, kv_heads)):
        kv_head, start, new, length, row, first_row = _record(records, tile_total, kv_heads, round_, programs)
        tiles, _ = _tiles(new, length, first_row, GROUP, CONSUMERS * ROWS, TILE)
        column = kv_head * HEAD_DIM
        last = row + gl.maximum(length - TILE, 0)
        if Q_TMA:
            mbarrier.wait(q_empty, (round_ & 1) ^ 1)
            mbarrier.expect(q_full, CONSUMERS * ROWS * HEAD_DIM * 2)
            for consumer in gl.static_range(CONSUMERS):
                tma.async_copy_global_to_shared(
                    q_rows,
                    [start + (first_row + consumer * ROWS) // GROUP, kv_head * GROUP, 0],
                    q_full,
                    q_smem.index(consumer)._reinterpret(q_smem.dtype, q_rows.block_shape, q_rows.layout),
                )
        for index in range(tiles):
            at = k_step % STAGES
            mbarrier.wait(k_empty.index(at), ((k_step // STAGES) & 1) ^ 1)
            mbarrier.expect(k_full.index(at), BYTES)
            position = gl.minimum(row + (tiles - 1 - index) * TILE, last)
            tma.async_copy_global_to_shared(k_rows, [position, column], k_full.index(at), k_smem.index(at))
            k_step += 1
            if index > 0:
                at = v_step % STAGES
                mbarrier.wait(v_empty.index(at), ((v_step // STAGES) & 1) ^ 1)
                mbarrier.expect(v_full.index(at), BYTES)
                position = gl.minimum(row + (tiles - index) * TILE, last)
                tma.async_copy_global_to_shared(v_rows, [position, column], v_full.index(at), v_smem.index(at))
                v_step += 1
        at = v_step % STAGES
        mbarrier.wait(v_empty.index(at), ((v_step // STAGES) & 1) ^ 1)
        mbarrier.expect(v_full.index(at), BYTES)
        tma.async_copy_global_to_shared(
            v_rows, [gl.minimum(row, last), column], v_full.index(at), v_smem.index(at)
        )  # fmt: skip
        v_step += 1


@gluon.jit
def _consumer(
    q, out, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, my_turn, other_turn, records,
    total, sinks, kv_heads, q_token_stride, q_head_stride, out_token_stride, out_head_stride, scaling,
    CONSUMER: gl.constexpr,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, CONSUMERS: gl.constexpr, ROWS: gl.constexpr,
    STAGES: gl.constexpr, Q_TMA: gl.constexpr, OVERLAP: gl.constexpr, TURNS: gl.constexpr, STORE: gl.constexpr,
    LAZY: gl.constexpr,
):  # fmt: skip
    WARPS: gl.constexpr = ROWS // 16
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TILE, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    S_COLUMNS: gl.constexpr = gl.SliceLayout(0, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    L_ROWS: gl.constexpr = gl.SliceLayout(1, LOAD)
    dtype: gl.constexpr = k_smem.dtype

    scale = scaling * 1.4426950408889634
    mine = q_smem.index(CONSUMER)
    k_step = 0
    v_step = 0
    turn = 0
    programs = gl.num_programs(0)
    rounds = _rounds(total, kv_heads)
    tile_total = gl.load(total)
    next_kv_head, next_start, next_new, next_length, _, next_row = _record(records, tile_total, kv_heads, 0, programs)
    for round_ in range(rounds):
        kv_head, start, new, length, first_row = next_kv_head, next_start, next_new, next_length, next_row
        next_kv_head, next_start, next_new, next_length, _, next_row = _record(
            records, tile_total, kv_heads, round_ + 1, programs
        )
        tiles, whole = _tiles(new, length, first_row, GROUP, CONSUMERS * ROWS, TILE)
        first_row += CONSUMER * ROWS

        if Q_TMA:
            mbarrier.wait(q_full, round_ & 1)
        else:
            rows = first_row + gl.arange(0, ROWS, L_ROWS)
            tokens = rows // GROUP
            heads = kv_head * GROUP + rows % GROUP
            at = (start + tokens).to(gl.int64) * q_token_stride + heads * q_head_stride
            dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LOAD))
            query = gl.load(q + at.expand_dims(1) + dims.expand_dims(0), mask=(tokens < new).expand_dims(1), other=0.0)
            mine.store(query)
            fence_async_shared()
            gl.thread_barrier()

        rows = first_row + gl.arange(0, ROWS, S_ROWS)
        positions = length - new + gl.minimum(rows // GROUP, new - 1)
        sums = gl.zeros([ROWS, HEAD_DIM], gl.float32, O_LAYOUT)

        # The request's last tile is masked by its rows' positions, and where it was moved back over the one before.
        s = scores(mine, k_smem, k_full, k_step, S_LAYOUT, ROWS, TILE, STAGES)
        # An arrival is a warp group's: all its warps meet before it, so that none still reads what is given back.
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(k_empty.index(k_step % STAGES))
        k_step += 1
        from_token = (tiles - 1) * TILE
        columns = gl.minimum(from_token, gl.maximum(length - TILE, 0)) + gl.arange(0, TILE, S_COLUMNS)
        visible = (columns.expand_dims(0) <= positions.expand_dims(1)) & (columns >= from_token).expand_dims(0)
        s = gl.where(visible, s, float("-inf"))
        # A row may see nothing of this tile: then its maximum is a number all the same.
        top = gl.maximum(gl.max(s, 1), -1e30)
        base = top * scale
        weights = gl.exp2(gl.fma(s, gl.full_like(s, 0.0) + scale, gl.full_like(s, 0.0) - base.expand_dims(1)))
        denominator = own_sums(weights, LAZY)
        p = packed(weights, dtype)

        # Tiles that some rows do not see whole.
        for index in range(1, tiles - whole):
            s = scores(mine, k_smem, k_full, k_step, S_LAYOUT, ROWS, TILE, STAGES)
            mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
            operand = operand_of(p, P_LAYOUT, dtype)
            o = warpgroup_mma(operand, v_smem.index(v_step % STAGES), sums, is_async=True)
            s, sums, _operand_kept = warpgroup_mma_wait(0, [s, o, operand])
            mbarrier.arrive(k_empty.index(k_step % STAGES))
            mbarrier.arrive(v_empty.index(v_step % STAGES))
            k_step += 1
            v_step += 1
            columns = (tiles - 1 - index) * TILE + gl.arange(0, TILE, S_COLUMNS)
            s = gl.where(columns.expand_dims(0) <= positions.expand_dims(1), s, float("-inf"))
            p, fade, top, denominator = softmax(s, top, denominator, scale, LAZY, dtype)
            sums = sums * gl.convert_layout(fade, O_ROWS).expand_dims(1)

        for index in range(gl.maximum(tiles - whole, 1), tiles):
            if TURNS:
                mbarrier.wait(my_turn, turn & 1)
                turn += 1
            s = scores(mine, k_smem, k_full, k_step, S_LAYOUT, ROWS, TILE, STAGES)
            mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
            operand = operand_of(p, P_LAYOUT, dtype)
            o = warpgroup_mma(operand, v_smem.index(v_step % STAGES), sums, is_async=True)
            if TURNS:
                mbarrier.arrive(other_turn)
            if OVERLAP:
                s = warpgroup_mma_wait(1, [s])
                mbarrier.arrive(k_empty.index(k_step % STAGES))
                k_step += 1
                next_p, fade, top, denominator = softmax(s, top, denominator, scale, LAZY, dtype)
                # Passed already: it keeps the assembler from waiting for the products before it takes the softmax.
                mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
                sums, _operand_kept = warpgroup_mma_wait(0, [o, operand])
                mbarrier.arrive(v_empty.index(v_step % STAGES))
                v_step += 1
                p = next_p
            else:
                s, sums, _operand_kept = warpgroup_mma_wait(0, [s, o, operand])
                mbarrier.arrive(k_empty.index(k_step % STAGES))
                mbarrier.arrive(v_empty.index(v_step % STAGES))
                k_step += 1
                v_step += 1
                p, fade, top, denominator = softmax(s, top, denominator, scale, LAZY, dtype)
            sums = sums * gl.convert_layout(fade, O_ROWS).expand_dims(1)

        mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
        operand = operand_of(p, P_LAYOUT, dtype)
        o = warpgroup_mma(operand, v_smem.index(v_step % STAGES), sums, is_async=True)
        if LAZY:
            denominator = gl.convert_layout(gl.sum(denominator, 1), S_ROWS)
        if sinks is not None:
            heads = kv_head * GROUP + rows % GROUP
            sink = gl.load(sinks + heads).to(gl.float32) * 1.4426950408889634
            denominator += gl.exp2(sink - top * scale)
        factor = gl.convert_layout(1 / denominator, O_ROWS)
        sums, _operand_kept = warpgroup_mma_wait(0, [o, operand])
        mbarrier.arrive(v_empty.index(v_step % STAGES))
        v_step += 1
        if Q_TMA and STORE != 2:
            mbarrier.arrive(q_empty)

        result = (sums * factor.expand_dims(1)).to(out.dtype.element_ty)
        if STORE > 0:
            if STORE == 2:
                mine.store(result)
                gl.thread_barrier()
                result = mine.load(LOAD)
                if Q_TMA:
                    fence_async_shared()
                    mbarrier.arrive(q_empty)
            else:
                result = gl.convert_layout(result, LOAD)
            rows = first_row + gl.arange(0, ROWS, L_ROWS)
            dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LOAD))
        else:
            rows = first_row + gl.arange(0, ROWS, O_ROWS)
            dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O_LAYOUT))
        tokens = rows // GROUP
        heads = kv_head * GROUP + rows % GROUP
        at = (start + tokens).to(gl.int64) * out_token_stride + heads * out_head_stride
        gl.store(out + at.expand_dims(1) + dims.expand_dims(0), result, mask=(tokens < new).expand_dims(1))


@gluon.jit
def hopper_prefill_kernel(
    q_rows, k_rows, v_rows, q, out, records, total, sinks,
    kv_heads, q_token_stride, q_head_stride, out_token_stride, out_head_stride, scaling,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, CONSUMERS: gl.constexpr, ROWS: gl.constexpr,
    STAGES: gl.constexpr, Q_TMA: gl.constexpr, OVERLAP: gl.constexpr, TURNS: gl.constexpr, STORE: gl.constexpr,
    LAZY: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = k_rows.dtype
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    q_smem = gl.allocate_shared_memory(dtype, [CONSUMERS, ROWS, HEAD_DIM], SHARED)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], k_rows.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], v_rows.layout)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
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
    if TURNS:
        mbarrier.arrive(first_turn)
    fence_async_shared()

    # Written out in place: a tuple that has a name loses its constants.
    if CONSUMERS == 1:
        gl.warp_specialize(
            [
                (
                    _consumer,
                    (
                        q, out, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, first_turn, second_turn,
                        records, total, sinks, kv_heads, q_token_stride, q_head_stride, out_token_stride,
                        out_head_stride, scaling, 0, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES, Q_TMA, OVERLAP,
                        TURNS, STORE, LAZY,
                    ),
                ),
                (
                    _producer,
                    (
                        q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full,
                        v_empty, records, total, kv_heads, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES, Q_TMA,
                    ),
                ),
            ],
            [1],
            [24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (
                    _consumer,
                    (
                        q, out, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, first_turn, second_turn,
                        records, total, sinks, kv_heads, q_token_stride, q_head_stride, out_token_stride,
                        out_head_stride, scaling, 0, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES, Q_TMA, OVERLAP,
                        TURNS, STORE, LAZY,
                    ),
                ),
                (
                    _consumer,
                    (
                        q, out, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, second_turn, first_turn,
                        records, total, sinks, kv_heads, q_token_stride, q_head_stride, out_token_stride,
                        out_head_stride, scaling, 1, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES, Q_TMA, OVERLAP,
                        TURNS, STORE, LAZY,
                    ),
                ),
                (
                    _producer,
                    (
                        q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full,
                        v_empty, records, total, kv_heads, GROUP, HEAD_DIM, TILE, CONSUMERS, ROWS, STAGES, Q_TMA,
                    ),
                ),
            ],
            [ROWS // 16, 1],
            [CONSUMER_REGISTERS, 24],
        )  # fmt: skip


@dataclass(frozen=True)
class HopperConfig:
    """How the kernel is compiled and launched."""

    tile: int = 128
    """Tokens a step."""
    consumers: int = 2
    rows: int = 64
    """Query rows of a consumer: 64 (4 warps) or 128 (8 warps)."""
    stages: int = 2
    """Tiles of K, and of V, in shared memory."""
    overlap: bool = True
    """Scores of a tile while the softmax of the one before."""
    turns: bool = True
    """Two consumers take turns at the tensor cores."""
    store: int = 1
    """Outputs to memory 0: from registers; by 16 bytes a thread, 1: through shared memory, 2: through the queries'."""
    lazy: bool = True
    """Denominators are summed over a row's threads once, at its end."""
    q_tma: bool = True
    """The producer copies queries; else the consumers load them."""
    persistent: bool = True
    """A program a multiprocessor; else a program an item."""
    registers: int = 240
    """Of a thread of the second consumer."""


class HopperPlan:
    """Which rows each program of a batch's prefill attention takes, for all layers with the same group of query heads.

    Args:
        group: query heads of a KV head.
        device: where the batch is.
        config: how the kernel is compiled.
    """

    def __init__(self, *, group: int, device: torch.device | str, config: HopperConfig | None = None) -> None:
        self.config = config or HopperConfig()
        self._group = group
        self._device = device
        self.tiles = 0
        self.records = torch.zeros(0, _FIELDS, dtype=torch.int32, device=device)
        self.total = torch.zeros(1, dtype=torch.int32, device=device)

    def update(
        self,
        query_starts: torch.Tensor,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        *,
        tokens: int,
        slot_tokens: int,
    ) -> None:
        """Deal out a batch.

        Args:
            query_starts: [batch + 1] int32 on the device: where each request's new tokens begin, and their end.
            lengths: [batch]: each request's tokens, prefix and new.
            slots: [batch].
            tokens: new ones of all requests, or more.
            slot_tokens: of a slot.
        """
        batch = query_starts.shape[0] - 1
        rows = self.config.rows * self.config.consumers
        # The most tiles that so many tokens can make; a program that finds none has nothing to do.
        self.tiles = tokens * self._group // rows + batch
        if self.tiles > self.records.shape[0]:
            self.records = torch.zeros(2 * self.tiles, _FIELDS, dtype=torch.int32, device=self._device)
        hopper_plan_kernel[(self.tiles,)](
            query_starts,
            lengths,
            slots,
            self.records,
            self.total,
            batch,
            slot_tokens,
            GROUP=self._group,
            BLOCK_ROWS=rows,
            BLOCK_BATCH=triton.next_power_of_2(batch),
        )


def hopper_prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    plan: HopperPlan,
    *,
    scaling: float,
    sinks: torch.Tensor | None = None,
) -> None:
    """Causal attention of each request's new tokens, its last, over its tokens [0, length).

    Args:
        q: [tokens, heads, head_dim], contiguous: the requests' new tokens one after the other.
        k: [slots, slot_tokens, kv_heads, head_dim] of q's dtype: slots one after the other, heads side by side.
        v: likewise.
        out: [tokens, heads, head_dim], written.
        plan: made from this batch; every request has at least as many tokens as a tile of its config, or none.
        scaling: factor of q . k.
        sinks: [heads]: a score a head that takes part in the softmax without a value.
    """
    config = plan.config
    heads, head_dim = q.shape[1:]
    kv_heads = k.shape[2]
    group = heads // kv_heads
    q_rows = None
    if config.q_tma:
        block = [config.rows // group, group, head_dim]
        layout = gl.NVMMASharedLayout(128, 16, rank=3)
        q_rows = TensorDescriptor(q, list(q.shape), list(q.stride()), block, layout)
    programs = plan.tiles * kv_heads
    if config.persistent:
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    hopper_prefill_kernel[(programs,)](
        q_rows,
        _rows(k, config.tile),
        _rows(v, config.tile),
        q,
        out,
        plan.records,
        plan.total,
        sinks,
        kv_heads,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        scaling,
        GROUP=group,
        HEAD_DIM=head_dim,
        TILE=config.tile,
        CONSUMERS=config.consumers,
        ROWS=config.rows,
        STAGES=config.stages,
        Q_TMA=config.q_tma,
        OVERLAP=config.overlap,
        TURNS=config.turns and config.consumers == 2,
        STORE=config.store,
        LAZY=config.lazy,
        CONSUMER_REGISTERS=config.registers,
        num_warps=config.rows // 16,
    )


def _rows(cache: torch.Tensor, tile: int) -> TensorDescriptor:
    """K or V of all slots as rows of tokens."""
    slots, tokens, heads, dim = cache.shape
    layout = gl.NVMMASharedLayout(128, 16)
    return TensorDescriptor(cache, [slots * tokens, heads * dim], [cache.stride(1), 1], [tile, dim], layout)
