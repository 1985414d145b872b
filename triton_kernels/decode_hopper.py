# SPDX-License-Identifier: Apache-2.0
"""Decode on Hopper: decode.py's mathematics by warps with roles.

    producer, 1 warp:     copies K and V tiles to shared memory (TMA), as far ahead as there is room, and takes the next
                          run that is left over (tiles.py) before the consumer has done with this one
    consumer, 4 warps:    scores, softmax and sums, a query head a column of its products

There is a program a multiprocessor. The first ones have a run of their own for each KV head; with the next ones they
take what is left over. A program takes half a multiprocessor's registers and more than half of its shared memory, so
that one of the kernel for shared tasks (shared_hopper.py) runs beside it. Requests shorter than a tile come last, by
masked loads, one worker each.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language import core
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .checks import Strides
from .decode_plan import MOST_ON_HOPPER, RUN_FIELDS, SHARED_ROWS, DecodeConfig, DecodePlan
from .launches import lower_flag, raise_flag
from .rows import gluon_heads, gluon_rows, heads_in_rows, in_rows
from .tiles import first_visible

TILE = 64
"""Tokens a step."""

STAGES = 4  # tiles of K, and of V, in shared memory
CONFIG = DecodeConfig(TILE, 4, STAGES, 1, left_over=True)
"""What a plan is made with whose requests' own tokens this kernel reads."""

PARTS = 3  # of which the producer has told the consumer; and numbers that describe one
FIELDS = 4
_HEAD_DIM = 128

_TAKE = """{
.reg .pred first;
.reg .b32 lane;
mov.u32 lane, %laneid;
setp.eq.u32 first, lane, 0;
mov.b32 lane, 0;
@first atom.relaxed.gpu.global.add.u32 lane, [$1], 1;
shfl.sync.idx.b32 $0, lane, 0, 31, 0xffffffff;
}"""


@core.extern
def count_up(pointer, _semantic=None):
    """By a single warp: the count before."""
    address = pointer.to(core.int64, bitcast=True, _semantic=_semantic)
    return core.inline_asm_elementwise(
        _TAKE, "=r,l,~{memory}", [address], dtype=core.int32, is_pure=False, pack=1, _semantic=_semantic
    )


@gluon.jit
def _load(
    k_rows, v_rows, row, column, k_full, k_empty, v_full, v_empty, k_smem, v_smem, step,
    BYTES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start the copies of a tile's K and V, when their stages are free."""
    stage = step % STAGES
    phase = ((step // STAGES) & 1) ^ 1
    mbarrier.wait(k_empty.index(stage), phase)
    mbarrier.expect(k_full.index(stage), BYTES)
    tma.async_copy_global_to_shared(k_rows, [row, column], k_full.index(stage), k_smem.index(stage))
    mbarrier.wait(v_empty.index(stage), phase)
    mbarrier.expect(v_full.index(stage), BYTES)
    tma.async_copy_global_to_shared(v_rows, [row, column], v_full.index(stage), v_smem.index(stage))


@gluon.jit
def _take(runs_taken, own_workers, all_runs, kv_heads):
    """(run, KV head) of the next that is left over, the heads' side by side; -1: there is none."""
    run = all_runs * 0 - 1
    head = all_runs * 0
    if all_runs > own_workers:
        taken = count_up(runs_taken)
        run = own_workers + taken // kv_heads
        head = taken % kv_heads
        run = gl.where(run < all_runs, run, -1)
    return run, head


@gluon.jit
def _tell(words, tiles, hidden, head, to, FIELDS: gl.constexpr):
    LAYOUT: gl.constexpr = gl.BlockedLayout([FIELDS], [32], [1], [0])
    at = gl.arange(0, FIELDS, LAYOUT)
    told = gl.where(at < 2, gl.where(at == 0, tiles, hidden), gl.where(at == 2, head, to))
    words.store(told)


@gluon.jit
def _hear(words, FIELDS: gl.constexpr):
    """(tiles, hidden tokens of the last, KV head, request or -1 - place) of the next part; no tiles: there is none."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([FIELDS], [32], [4], [0])
    at = gl.arange(0, FIELDS, LAYOUT)
    told = words.load(LAYOUT)
    tiles = gl.sum(gl.where(at == 0, told, 0), 0)
    hidden = gl.sum(gl.where(at == 1, told, 0), 0)
    head = gl.sum(gl.where(at == 2, told, 0), 0)
    return tiles, hidden, head, gl.sum(gl.where(at == 3, told, 0), 0)


@gluon.jit
def _request(requests, rank_ends, rank, slot_tokens, RUN_FIELDS: gl.constexpr):
    fields = requests + rank * RUN_FIELDS
    row = gl.load(fields + 3) * slot_tokens
    return (
        gl.load(fields), gl.load(fields + 1), gl.load(fields + 2), row, gl.load(fields + 4), gl.load(rank_ends + rank),
        gl.load(rank_ends + rank + 1),
    )  # fmt: skip


@gluon.jit
def _producer(
    q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, k_full, k_empty, v_full, v_empty, told, told_full, told_empty,
    requests, rank_ends, runs, runs_left, runs_taken, begun, own_workers, kv_heads, slot_tokens, q_batch_rows,
    RUN_FIELDS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, COLUMNS: gl.constexpr,
    STAGES: gl.constexpr, PARTS: gl.constexpr, FIELDS: gl.constexpr,
):  # fmt: skip
    BYTES: gl.constexpr = TILE * HEAD_DIM * 2
    me = gl.program_id(0)
    # Known to the compiler, which does not take both in one.
    if begun is not None:  # noqa: SIM102
        if me == 0:
            lower_flag(begun)
    gdc_launch_dependents()

    # What a step's plan says may be read while the kernel before still runs; and so may tokens, all but the newest.
    run = gl.where(me < own_workers * kv_heads, me // kv_heads, -1)
    head = me % kv_heads
    all_runs = own_workers + gl.load(runs_left)
    ahead = run * 0
    if run >= 0:
        rank = gl.load(runs + run * 4)
        if rank <= gl.load(runs + run * 4 + 1):
            request, own_start, length, row, alone, begin, stop = _request(
                requests, rank_ends, rank, slot_tokens, RUN_FIELDS
            )
            first = gl.load(runs + run * 4 + 2)
            start = own_start + (first - begin) * TILE
            tiles = gl.minimum(gl.load(runs + run * 4 + 3), stop) - first
            ahead = gl.minimum(gl.minimum(tiles, (length - 1 - start) // TILE), STAGES)
            for index in range(ahead):
                _load(
                    k_rows, v_rows, row + start + index * TILE, head * HEAD_DIM, k_full, k_empty, v_full, v_empty,
                    k_smem, v_smem, index, BYTES, STAGES,
                )  # fmt: skip
    gdc_wait()
    if begun is not None:  # noqa: SIM102
        if me == 0:
            raise_flag(begun)

    step = 0
    part = 0
    if run < 0:
        run, head = _take(runs_taken, own_workers, all_runs, kv_heads)
    while run >= 0:
        at = runs + run * 4
        first_rank = gl.load(at)
        last_rank = gl.load(at + 1)
        tile = gl.load(at + 2)
        end = gl.load(at + 3)
        for rank in range(first_rank, last_rank + 1):
            request, own_start, length, row, alone, begin, stop = _request(
                requests, rank_ends, rank, slot_tokens, RUN_FIELDS
            )
            first = gl.maximum(tile, begin)
            last = gl.minimum(end, stop)
            # The last tile is moved back to end where the request ends.
            hidden = gl.maximum(own_start + (last - begin) * TILE - length, 0)
            whole = (alone != 0) & (tile <= begin) & (end >= stop)
            slot = part % PARTS
            mbarrier.wait(told_empty.index(slot), ((part // PARTS) & 1) ^ 1)
            _tell(told.index(slot), last - first, hidden, head, gl.where(whole, request, -1 - rank - run), FIELDS)
            gl.thread_barrier()
            mbarrier.expect(told_full.index(slot), COLUMNS * HEAD_DIM * 2)
            query = request * q_batch_rows + head * GROUP
            tma.async_copy_global_to_shared(q_rows, [query, 0], told_full.index(slot), q_smem.index(slot))
            part += 1
            for index in range(first, last):
                if step >= ahead:
                    start = own_start + (index - begin) * TILE
                    _load(
                        k_rows, v_rows, row + gl.minimum(start, length - TILE), head * HEAD_DIM, k_full, k_empty,
                        v_full, v_empty, k_smem, v_smem, step, BYTES, STAGES,
                    )  # fmt: skip
                step += 1
        # The consumer is some tiles behind: it need not wait for what this takes.
        run, head = _take(runs_taken, own_workers, all_runs, kv_heads)
    slot = part % PARTS
    mbarrier.wait(told_empty.index(slot), ((part // PARTS) & 1) ^ 1)
    _tell(told.index(slot), 0, 0, 0, 0, FIELDS)
    gl.thread_barrier()
    mbarrier.arrive(told_full.index(slot))


@gluon.jit
def _softmax(s, top, scale):
    """(weights, fade, the running maximum after it) of a tile's scores [tokens, columns]."""
    new_top = gl.maximum(top, gl.max(s, 0))
    base = new_top * scale
    return gl.exp2(s * scale - base.expand_dims(0)), gl.exp2(top * scale - base), new_top


@gluon.jit
def _consumer(
    q, k, v, out, partial, partial_lse, sinks, q_smem, p_smem, k_smem, v_smem, k_full, k_empty, v_full, v_empty, told,
    told_full, told_empty, slots, lengths, short_requests, shorts, own_workers, kv_heads,
    q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride, v_token_stride,
    v_head_stride, out_batch_stride, out_head_stride, scaling,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, WINDOW: gl.constexpr, TILE: gl.constexpr, COLUMNS: gl.constexpr,
    STAGES: gl.constexpr, PARTS: gl.constexpr, FIELDS: gl.constexpr,
):  # fmt: skip
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    BY_TOKEN: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    BY_HEAD: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    L_ROWS: gl.constexpr = gl.SliceLayout(1, LOAD)
    dtype: gl.constexpr = k_smem.dtype
    scale = scaling * 1.4426950408889634
    step = 0
    part = 0
    columns = gl.arange(0, COLUMNS, BY_HEAD)
    tokens = gl.arange(0, TILE, BY_TOKEN)
    out_dims = gl.arange(0, HEAD_DIM, BY_TOKEN)
    there = columns < GROUP
    mbarrier.wait(told_full.index(0), 0)
    tiles, hidden, head, to = _hear(told.index(0), FIELDS)
    while tiles > 0:
        slot = part % PARTS
        query = q_smem.index(slot).permute((1, 0))
        top = gl.full([COLUMNS], float("-inf"), gl.float32, BY_HEAD)
        weighed = gl.zeros([TILE, COLUMNS], gl.float32, LAYOUT)
        sums = gl.zeros([HEAD_DIM, COLUMNS], gl.float32, LAYOUT)
        for index in range(tiles):
            stage = step % STAGES
            phase = (step // STAGES) & 1
            mbarrier.wait(k_full.index(stage), phase)
            zero = gl.zeros([TILE, COLUMNS], gl.float32, LAYOUT)
            s = warpgroup_mma(k_smem.index(stage), query, zero, use_acc=False, is_async=True)
            s = warpgroup_mma_wait(0, [s])
            # An arrival is a warp group's: all its warps meet before it, so that none still reads what is given back.
            mbarrier.arrive(k_empty.index(stage))
            visible = tokens >= gl.where(index == tiles - 1, hidden, 0)
            s = gl.where(visible.expand_dims(1), s, float("-inf"))
            weights, fade, top = _softmax(s, top, scale)
            weighed = weighed * fade.expand_dims(0) + weights
            p_smem.permute((1, 0)).store(weights.to(dtype))
            fence_async_shared()
            gl.thread_barrier()
            sums = sums * fade.expand_dims(0)
            mbarrier.wait(v_full.index(stage), phase)
            o = warpgroup_mma(v_smem.index(stage).permute((1, 0)), p_smem.permute((1, 0)), sums, is_async=True)
            sums = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(v_empty.index(stage))
            step += 1
        mbarrier.arrive(told_empty.index(slot))
        denominator = gl.sum(weighed, 0)
        heads = head * GROUP + columns
        if to >= 0:
            if sinks is not None:
                sink = gl.load(sinks + heads, mask=there, other=0.0).to(gl.float32)
                denominator += gl.exp2(sink * 1.4426950408889634 - top * scale)
            output = (sums * (1 / denominator).expand_dims(0)).to(out.dtype.element_ty)
            at_head = out + to.to(gl.int64) * out_batch_stride + heads.expand_dims(0) * out_head_stride
            gl.store(at_head + out_dims.expand_dims(1), output, mask=there.expand_dims(0))
        else:
            place = (-1 - to) * (kv_heads * GROUP) + heads
            gl.store(partial_lse + place, top * scale + gl.log2(denominator), mask=there)
            at_place = partial + place.expand_dims(0) * HEAD_DIM + out_dims.expand_dims(1)
            gl.store(at_place, sums * (1 / denominator).expand_dims(0), mask=there.expand_dims(0))
        part += 1
        mbarrier.wait(told_full.index(part % PARTS), (part // PARTS) & 1)
        tiles, hidden, head, to = _hear(told.index(part % PARTS), FIELDS)

    # The producer has ended: its shared memory is free.
    gdc_wait()
    me = gl.program_id(0)
    head = me % kv_heads
    short = me // kv_heads
    if short >= own_workers:
        short = gl.load(shorts)
    k_stage = k_smem.index(0)
    v_stage = v_smem.index(0)
    q_stage = q_smem.index(0)
    rows = gl.arange(0, COLUMNS, L_ROWS)
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LOAD))
    token = gl.arange(0, TILE, L_ROWS)
    heads = head * GROUP + columns
    for at in range(short, gl.load(shorts), own_workers):
        request = gl.load(short_requests + at)
        length = gl.load(lengths + request).to(gl.int32)
        slot = gl.load(slots + request).to(gl.int64)
        from_ = request.to(gl.int64) * q_batch_stride + (head * GROUP + rows) * q_head_stride
        query = gl.load(q + from_.expand_dims(1) + dims.expand_dims(0), mask=(rows < GROUP).expand_dims(1), other=0.0)
        k_from = k + slot * k_slot_stride + head * k_head_stride + token.to(gl.int64).expand_dims(1) * k_token_stride
        v_from = v + slot * v_slot_stride + head * v_head_stride + token.to(gl.int64).expand_dims(1) * v_token_stride
        valid = (token < length).expand_dims(1)
        q_stage.store(query)
        k_stage.store(gl.load(k_from + dims.expand_dims(0), mask=valid, other=0.0))
        v_stage.store(gl.load(v_from + dims.expand_dims(0), mask=valid, other=0.0))
        fence_async_shared()
        gl.thread_barrier()
        zero = gl.zeros([TILE, COLUMNS], gl.float32, LAYOUT)
        s = warpgroup_mma(k_stage, q_stage.permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, [s])
        visible = (tokens < length) & (tokens >= first_visible(length, WINDOW))
        s = gl.where(visible.expand_dims(1), s, float("-inf"))
        weights, _fade, top = _softmax(s, gl.full([COLUMNS], float("-inf"), gl.float32, BY_HEAD), scale)
        denominator = gl.sum(weights, 0)
        p_smem.permute((1, 0)).store(weights.to(dtype))
        fence_async_shared()
        gl.thread_barrier()
        sums = gl.zeros([HEAD_DIM, COLUMNS], gl.float32, LAYOUT)
        sums = warpgroup_mma(v_stage.permute((1, 0)), p_smem.permute((1, 0)), sums, use_acc=False, is_async=True)
        sums = warpgroup_mma_wait(0, [sums])
        if sinks is not None:
            sink = gl.load(sinks + heads, mask=there, other=0.0).to(gl.float32)
            denominator += gl.exp2(sink * 1.4426950408889634 - top * scale)
        output = (sums * (1 / denominator).expand_dims(0)).to(out.dtype.element_ty)
        at_head = out + request.to(gl.int64) * out_batch_stride + heads.expand_dims(0) * out_head_stride
        gl.store(at_head + out_dims.expand_dims(1), output, mask=there.expand_dims(0))
        gl.thread_barrier()


@gluon.jit(do_not_specialize_on_alignment=["slots", "lengths"])
def decode_hopper_kernel(
    q,  # [batch, heads, head_dim]
    q_rows,  # descriptor of q as [rows, head_dim]: a head a row, whatever is between two requests'
    k,  # [slots, slot_tokens, kv_heads, head_dim]
    v,  # likewise
    k_rows,  # descriptor of k as [slots * slot_tokens, kv_heads * head_dim]
    v_rows,  # descriptor of v, likewise
    out,  # [batch, heads, head_dim], written
    partial,  # [places, heads, head_dim] float32, written, see decode.py
    partial_lse,  # [places, heads] float32, written
    slots,  # [batch]
    lengths,  # [batch]
    short_requests,  # [batch]
    shorts,  # [1]
    requests,  # [batch, RUN_FIELDS]
    rank_ends,  # [batch + 1]
    runs,  # [runs, 4]
    runs_left,  # [1]
    runs_taken,  # [1] int32, counted up: 0 before
    begun,  # [1] int32, written: raised when what came before is done, for a kernel that begins beside this; or None
    sinks,  # [heads] or None
    own_workers,
    kv_heads,
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
    RUN_FIELDS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    WINDOW: gl.constexpr,
    TILE: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    PARTS: gl.constexpr,
    FIELDS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """The programs of a worker's heads are beside each other: they read the same tokens' neighbouring heads."""
    dtype: gl.constexpr = k_rows.dtype
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    q_smem = gl.allocate_shared_memory(dtype, [PARTS, COLUMNS, HEAD_DIM], q_rows.layout)
    p_smem = gl.allocate_shared_memory(dtype, [COLUMNS, TILE], gl.NVMMASharedLayout(128, 16))
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], k_rows.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], v_rows.layout)
    told = gl.allocate_shared_memory(gl.int32, [PARTS, FIELDS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    told_full = gl.allocate_shared_memory(gl.int64, [PARTS, 1], barrier)
    told_empty = gl.allocate_shared_memory(gl.int64, [PARTS, 1], barrier)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=1)
    for stage in gl.static_range(PARTS):
        mbarrier.init(told_full.index(stage), count=1)
        mbarrier.init(told_empty.index(stage), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _consumer,
                (
                    q, k, v, out, partial, partial_lse, sinks, q_smem, p_smem, k_smem, v_smem, k_full, k_empty, v_full,
                    v_empty, told, told_full, told_empty, slots, lengths, short_requests, shorts, own_workers, kv_heads,
                    q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride,
                    v_token_stride, v_head_stride, out_batch_stride, out_head_stride, scaling,
                    GROUP, HEAD_DIM, WINDOW, TILE, COLUMNS, STAGES, PARTS, FIELDS,
                ),
            ),
            (
                _producer,
                (
                    q_rows, k_rows, v_rows, q_smem, k_smem, v_smem, k_full, k_empty, v_full, v_empty, told, told_full,
                    told_empty, requests, rank_ends, runs, runs_left, runs_taken, begun, own_workers, kv_heads,
                    slot_tokens, q_batch_stride // HEAD_DIM,
                    RUN_FIELDS, GROUP, HEAD_DIM, TILE, COLUMNS, STAGES, PARTS, FIELDS,
                ),
            ),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip


def launch(group: int) -> dict[str, int]:
    """How the kernel is compiled for so many query heads of a KV head: columns of a product, 8 at least; tiles in
    shared memory; and registers of a thread, on average and of the producer: where a kernel may run beside this one,
    half of the multiprocessor's, and all where so many heads cannot share."""
    columns = max(8, triton.next_power_of_2(group))
    return {
        "COLUMNS": columns,
        "STAGES": STAGES if columns <= 16 else STAGES - 1,
        "PRODUCER_REGISTERS": 40,
        "maxnreg": 120 if 2 * group <= SHARED_ROWS else 240,
    }


def on_hopper(tensor: torch.Tensor) -> bool:
    """Whether it is on such a GPU."""
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device)[0] == 9


def can_read(k: torch.Tensor, v: torch.Tensor, group: int) -> bool:
    """Whether the kernel, and the one for shared tasks, can read a layer's K and V.

    Args:
        k: [slots, slot_tokens, kv_heads, head_dim].
        v: [slots, slot_tokens, kv_heads, v_head_dim].
        group: query heads of a KV head.
    """
    return (
        group <= MOST_ON_HOPPER
        and on_hopper(k)
        and k.dtype in (torch.bfloat16, torch.float16)
        and all(it.shape[3] == _HEAD_DIM and in_rows(it) for it in (k, v))
    )


def check_own(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: DecodePlan) -> None:
    """ValueError if the kernel cannot read what the plan's requests read by themselves. That the arguments fit each
    other and the plan was seen."""
    if plan.config != CONFIG:
        raise ValueError(f"the plan's config leaves tiles over, and should then be {CONFIG}")
    if not heads_in_rows(q):
        raise ValueError(
            f"q is {list(q.shape)} with strides {list(q.stride())} at {q.data_ptr():#x}, and should have heads side by "
            "side, requests whole heads apart, and begin at a multiple of 16 bytes: decode_hopper.py reads it"
        )
    if not can_read(k, v, plan.group) or k.dtype is not q.dtype:
        raise ValueError(
            f"k and v are {list(k.shape)} {k.dtype} with strides {list(k.stride())} for {plan.group} query heads each, "
            f"and should have heads of {_HEAD_DIM} elements, bfloat16 or float16 as q ({q.dtype}), slots one after "
            f"the other and heads side by side, at most {MOST_ON_HOPPER} query heads for each, on Hopper: the plan's "
            "config is for it"
        )


def decode_hopper_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    plan: DecodePlan,
    strides: tuple[Strides, ...],
    scaling: float,
    sinks: torch.Tensor | None,
) -> None:
    """What requests read by themselves: a step of `decode_attention`, which has checked what it is given.

    Args:
        strides: of q, k, v and out.
    """
    kv_heads = k.shape[2]
    q_stride, k_stride, v_stride, out_stride = strides
    options = launch(plan.group)
    decode_hopper_kernel[(plan.workers * kv_heads + plan.spare_programs,)](
        q,
        gluon_heads(q, options["COLUMNS"]),
        k,
        v,
        gluon_rows(k, TILE),
        gluon_rows(v, TILE),
        out,
        plan.partial,
        plan.partial_lse,
        slots,
        lengths,
        plan.short_requests,
        plan.shorts,
        plan.requests,
        plan.rank_ends,
        plan.runs,
        plan.runs_left,
        plan.runs_taken,
        plan.begun if plan.shared_by(plan.batch) else None,
        sinks,
        plan.workers,
        kv_heads,
        k.shape[1],
        *q_stride[:2],
        *k_stride[:3],
        *v_stride[:3],
        *out_stride[:2],
        scaling,
        RUN_FIELDS=RUN_FIELDS,
        GROUP=plan.group,
        HEAD_DIM=k.shape[3],
        WINDOW=plan.window,
        TILE=TILE,
        PARTS=PARTS,
        FIELDS=FIELDS,
        num_warps=4,
        launch_pdl=plan.dependent_launch,
        **options,
    )
