# SPDX-License-Identifier: Apache-2.0
"""The producer of decode on Hopper (decode_hopper.py): one warp that copies tiles, takes runs, and tells the consumer
of each part of a request that comes."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.language import core
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launches import lower_flag, raise_flag

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
def _request(requests, rank_ends, rank, slot_tokens, RUN_FIELDS: gl.constexpr):
    fields = requests + rank * RUN_FIELDS
    row = gl.load(fields + 3) * slot_tokens
    return (
        gl.load(fields), gl.load(fields + 1), gl.load(fields + 2), row, gl.load(fields + 4), gl.load(rank_ends + rank),
        gl.load(rank_ends + rank + 1),
    )  # fmt: skip


@gluon.jit
def producer(
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
