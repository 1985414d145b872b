# SPDX-License-Identifier: Apache-2.0
"""The consumer of decode on Hopper (decode_hopper.py): four warps that take scores, softmax and sums of a KV head's
query heads, a head a column."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

from .tiles import first_visible


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
def _softmax(s, top, scale):
    """(weights, fade, the running maximum after it) of a tile's scores [tokens, columns]."""
    new_top = gl.maximum(top, gl.max(s, 0))
    base = new_top * scale
    return gl.exp2(s * scale - base.expand_dims(0)), gl.exp2(top * scale - base), new_top


@gluon.jit
def consumer(
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
