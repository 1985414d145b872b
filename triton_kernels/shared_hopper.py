# SPDX-License-Identifier: Apache-2.0
"""The shared tasks of tree-aware decode on Hopper: what shared_tasks.py computes, by warps with roles.

    producer, 1 warp:     copies K and V tiles to shared memory (TMA), as far ahead as there is room
    consumer, 4 warps:    scores, softmax and sums of 64 rows

A row is a query head of one of the requests that share a task, so that a tile is read once for 64 rows. The scores of a
tile are computed while the weights of the one before meet its values. A task's tiles go from its last to its first; the
last one is moved back to end where the task ends, and masked where it overlaps the one before.

A program takes half a multiprocessor's registers and shared memory. It runs beside one of the decode kernel's, which
waits for memory while this one keeps the tensor cores busy.
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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .decode_plan import SHARED_ROWS, TASK_FIELDS, DecodePlan
from .hopper_steps import operand as operand_of
from .hopper_steps import own_sums, packed, scores, softmax
from .launches import await_flag
from .rows import gluon_rows

TILE = 64
"""Tokens a step."""

STAGES = 2  # tiles of K, and of V, in shared memory
REGISTERS, PRODUCER_REGISTERS = 120, 24  # of a thread, on average and of the producer


@gluon.jit
def _tiles_of(tasks, task, tile, end, TASK_FIELDS: gl.constexpr, TILE: gl.constexpr):
    """Of a task: where its slot's row is told, its first token and the one behind its last, its first tile on the line
    of all, and the tiles of the run [tile, end) that are its."""
    at = tasks + task * TASK_FIELDS
    start = gl.load(at + 1)
    stop = gl.load(at + 2)
    task_end = gl.load(at + 6)
    begin = task_end - gl.cdiv(stop - start, TILE)
    return at, start, stop, begin, gl.maximum(tile, begin), gl.minimum(end, task_end)


@gluon.jit
def _producer(
    k_rows, v_rows, k_smem, v_smem, k_full, k_empty, v_full, v_empty, tasks, run, slot_tokens,
    TASK_FIELDS: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    BYTES: gl.constexpr = TILE * HEAD_DIM * 2
    column = gl.program_id(0) * HEAD_DIM
    k_step = 0
    v_step = 0
    tile = gl.load(run + 2)
    end = gl.load(run + 3)
    for task in range(gl.load(run), gl.load(run + 1) + 1):
        at, start, stop, begin, first, last = _tiles_of(tasks, task, tile, end, TASK_FIELDS, TILE)
        row = gl.load(at) * slot_tokens
        for back in range(last - first + 1):
            # V comes a tile later: the scores are first.
            if back < last - first:
                position = row + gl.minimum(start + (last - 1 - back - begin) * TILE, stop - TILE)
                stage = k_step % STAGES
                mbarrier.wait(k_empty.index(stage), ((k_step // STAGES) & 1) ^ 1)
                mbarrier.expect(k_full.index(stage), BYTES)
                tma.async_copy_global_to_shared(k_rows, [position, column], k_full.index(stage), k_smem.index(stage))
                k_step += 1
            if back > 0:
                position = row + gl.minimum(start + (last - back - begin) * TILE, stop - TILE)
                stage = v_step % STAGES
                mbarrier.wait(v_empty.index(stage), ((v_step // STAGES) & 1) ^ 1)
                mbarrier.expect(v_full.index(stage), BYTES)
                tma.async_copy_global_to_shared(v_rows, [position, column], v_full.index(stage), v_smem.index(stage))
                v_step += 1


@gluon.jit
def _consumer(
    q, q_smem, k_smem, v_smem, k_full, k_empty, v_full, v_empty, header, tasks, order, run,
    partial, partial_lse, begun, own_places, q_batch_stride, q_head_stride, scaling,
    TASK_FIELDS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, ROWS: gl.constexpr,
    STAGES: gl.constexpr,
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

    kv_head = gl.program_id(0)
    worker = gl.program_id(1)
    heads = gl.num_programs(0) * GROUP
    scale = scaling * 1.4426950408889634
    k_step = 0
    v_step = 0
    tile = gl.load(run + 2)
    end = gl.load(run + 3)
    total = gl.load(header + 1)
    used = gl.minimum(total, gl.num_programs(1))
    first_task = gl.load(run)
    for task in range(first_task, gl.load(run + 1) + 1):
        at, start, stop, begin, first, last = _tiles_of(tasks, task, tile, end, TASK_FIELDS, TILE)
        first_member = gl.load(at + 3)
        count = gl.load(at + 4)
        first_place = own_places + gl.load(at + 5)

        rows = gl.arange(0, ROWS, L_ROWS)
        there = rows // GROUP < count
        request = gl.load(order + first_member + rows // GROUP, mask=there, other=0)
        from_ = request.to(gl.int64) * q_batch_stride + (kv_head * GROUP + rows % GROUP) * q_head_stride
        dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LOAD))
        if task == first_task:
            # What is shared was there before this step; queries come from the kernel before the decode kernel.
            await_flag(begun)
        query = gl.load(q + from_.expand_dims(1) + dims.expand_dims(0), mask=there.expand_dims(1), other=0.0)
        q_smem.store(query)
        fence_async_shared()
        gl.thread_barrier()

        sums = gl.zeros([ROWS, HEAD_DIM], gl.float32, O_LAYOUT)
        s = scores(q_smem, k_smem, k_full, k_step, S_LAYOUT, ROWS, TILE, STAGES)
        # An arrival is a warp group's: all its warps meet before it, so that none still reads what is given back.
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(k_empty.index(k_step % STAGES))
        k_step += 1
        from_token = start + (last - 1 - begin) * TILE
        columns = gl.minimum(from_token, stop - TILE) + gl.arange(0, TILE, S_COLUMNS)
        s = gl.where((columns >= from_token).expand_dims(0), s, float("-inf"))
        top = gl.max(s, 1)
        base = top * scale
        weights = gl.exp2(gl.fma(s, gl.full_like(s, 0.0) + scale, gl.full_like(s, 0.0) - base.expand_dims(1)))
        denominator = own_sums(weights, True)
        p = packed(weights, dtype)

        for _ in range(1, last - first):
            s = scores(q_smem, k_smem, k_full, k_step, S_LAYOUT, ROWS, TILE, STAGES)
            mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
            operand = operand_of(p, P_LAYOUT, dtype)
            o = warpgroup_mma(operand, v_smem.index(v_step % STAGES), sums, is_async=True)
            s = warpgroup_mma_wait(1, [s])
            mbarrier.arrive(k_empty.index(k_step % STAGES))
            k_step += 1
            next_p, fade, top, denominator = softmax(s, top, denominator, scale, True, dtype)
            # Passed already: it keeps the assembler from waiting for the products before it takes the softmax.
            mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
            sums, _operand_kept = warpgroup_mma_wait(0, [o, operand])
            mbarrier.arrive(v_empty.index(v_step % STAGES))
            v_step += 1
            p = next_p
            sums = sums * gl.convert_layout(fade, O_ROWS).expand_dims(1)

        mbarrier.wait(v_full.index(v_step % STAGES), (v_step // STAGES) & 1)
        operand = operand_of(p, P_LAYOUT, dtype)
        o = warpgroup_mma(operand, v_smem.index(v_step % STAGES), sums, is_async=True)
        denominator = gl.convert_layout(gl.sum(denominator, 1), S_ROWS)
        lse = top * scale + gl.log2(denominator)
        factor = gl.convert_layout(1 / denominator, O_ROWS)
        sums, _operand_kept = warpgroup_mma_wait(0, [o, operand])
        mbarrier.arrive(v_empty.index(v_step % STAGES))
        v_step += 1

        span = worker - (((begin + 1).to(gl.int64) * used - 1) // total).to(gl.int32)
        place = first_place + span * count
        s_rows = gl.arange(0, ROWS, S_ROWS)
        to = (place + s_rows // GROUP).to(gl.int64) * heads + kv_head * GROUP + s_rows % GROUP
        gl.store(partial_lse + to, lse, mask=s_rows // GROUP < count)
        o_rows = gl.arange(0, ROWS, O_ROWS)
        to = (place + o_rows // GROUP).to(gl.int64) * heads + kv_head * GROUP + o_rows % GROUP
        dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O_LAYOUT))
        gl.store(
            partial + (to * HEAD_DIM).expand_dims(1) + dims.expand_dims(0),
            sums * factor.expand_dims(1),
            mask=(o_rows // GROUP < count).expand_dims(1),
        )


@gluon.jit
def shared_hopper_kernel(
    q,  # [batch, heads, head_dim]
    k_rows,  # descriptor of K as [slots * slot_tokens, kv_heads * head_dim]
    v_rows,  # descriptor of V, likewise
    header,  # [8] int32
    tasks,  # [tasks, TASK_FIELDS] int32
    order,  # [batch] int32
    runs,  # [workers, 4] int32
    partial,  # [places, heads, head_dim] float32, written behind own_places
    partial_lse,  # [places, heads] float32, written there
    begun,  # [1] int32: raised by the decode kernel when the queries are there
    own_places,
    slot_tokens,
    q_batch_stride,
    q_head_stride,
    scaling,
    TASK_FIELDS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TILE: gl.constexpr,
    ROWS: gl.constexpr,
    STAGES: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One program a KV head and worker. They begin beside the decode kernel before them, and the first one ends when
    that is done: who waits for this kernel waits for both. The others make room."""
    gdc_launch_dependents()
    first_program = gl.program_id(0) + gl.program_id(1) == 0
    run = runs + gl.program_id(1) * 4
    if gl.load(run) > gl.load(run + 1):
        if first_program:
            gdc_wait()
        return
    dtype: gl.constexpr = k_rows.dtype
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    q_smem = gl.allocate_shared_memory(dtype, [ROWS, HEAD_DIM], gl.NVMMASharedLayout(128, 16))
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], k_rows.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], v_rows.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=1)
    fence_async_shared()
    # Written out in place: a tuple that has a name loses its constants.
    gl.warp_specialize(
        [
            (
                _consumer,
                (
                    q, q_smem, k_smem, v_smem, k_full, k_empty, v_full, v_empty, header, tasks, order, run, partial,
                    partial_lse, begun, own_places, q_batch_stride, q_head_stride, scaling,
                    TASK_FIELDS, GROUP, HEAD_DIM, TILE, ROWS, STAGES,
                ),
            ),
            (
                _producer,
                (
                    k_rows, v_rows, k_smem, v_smem, k_full, k_empty, v_full, v_empty, tasks, run, slot_tokens,
                    TASK_FIELDS, HEAD_DIM, TILE, STAGES,
                ),
            ),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip
    if first_program:
        gdc_wait()


def check_tasks(plan: DecodePlan) -> None:
    """ValueError if the kernel cannot read a plan's tasks. That it can read K and V was seen."""
    tile, members = plan.shared.tile, plan.shared.members
    if tile != TILE or members * plan.group > SHARED_ROWS:
        raise ValueError(
            f"the plan has tasks of tiles of {tile} tokens for {members} times {plan.group} query heads, and should "
            f"have tiles of {TILE} for at most {SHARED_ROWS}"
        )


def shared_hopper_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: DecodePlan, scaling: float
) -> None:
    """The partial results of a plan's shared tasks: a step of `decode_attention`, which has checked what it is given.

    Args:
        q: [batch, heads, head_dim] bfloat16 or float16, contiguous in the last dimension.
        k, v: [slots, slot_tokens, kv_heads, head_dim] of q's dtype: slots one after the other, heads side by side.
        plan: with shared tasks of tiles of `TILE` tokens, at most `SHARED_ROWS` rows each.
        scaling: factor of q . k.
    """
    shared = plan.shared
    assert shared is not None
    heads, head_dim = q.shape[1:]
    kv_heads = k.shape[2]
    shared_hopper_kernel[(kv_heads, shared.workers)](
        q,
        gluon_rows(k, TILE),
        gluon_rows(v, TILE),
        shared.header,
        shared.tasks,
        shared.order,
        shared.runs,
        plan.partial,
        plan.partial_lse,
        plan.begun,
        plan.own_places,
        k.shape[1],
        q.stride(0),
        q.stride(1),
        scaling,
        TASK_FIELDS=TASK_FIELDS,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        TILE=TILE,
        ROWS=SHARED_ROWS,
        STAGES=STAGES,
        PRODUCER_REGISTERS=PRODUCER_REGISTERS,
        num_warps=SHARED_ROWS // 16,
        maxnreg=REGISTERS,
        launch_pdl=True,
    )
