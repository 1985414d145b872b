# SPDX-License-Identifier: Apache-2.0
"""The shared tasks of tree-aware decode inside the decode kernel (decode.py); on Hopper shared_hopper.py reads them."""

import triton
import triton.language as tl

from .decode_tiles import attend, begin_work, load_tile
from .tiles import worker_of, workers_used


@triton.jit
def attend_shared(
    q, k, v, k_rows, v_rows, tasks, order, task_runs, partial, partial_lse, own_places, total, worker, workers,
    kv_head, kv_heads, slot_tokens, q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride,
    v_slot_stride, v_token_stride, v_head_stride, scale, v_factor,
    TASK_FIELDS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    LOGIT_CAP: tl.constexpr, TILE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The worker's run of the tasks' tiles: a row is a query head of one of the requests that share the task."""
    run = task_runs + worker * 4
    tile = tl.load(run + 2)
    end = tl.load(run + 3)
    if AHEAD:
        begin_work()
    rows = tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_DIM)
    v_dims = tl.arange(0, BLOCK_V_DIM)
    tokens = tl.arange(0, TILE)
    heads = kv_head * GROUP + rows % GROUP
    for task in range(tl.load(run), tl.load(run + 1) + 1):
        at = tasks + task * TASK_FIELDS
        slot = tl.load(at)
        task_start = tl.load(at + 1)
        task_stop = tl.load(at + 2)
        count = tl.load(at + 4)
        first_place = tl.load(at + 5)
        task_end = tl.load(at + 6)
        task_begin = task_end - tl.cdiv(task_stop - task_start, TILE)
        members = rows // GROUP
        row_mask = members < count
        requests = tl.load(order + tl.load(at + 3) + members, mask=row_mask, other=0)
        query = tl.load(
            q + requests.to(tl.int64)[:, None] * q_batch_stride + heads[:, None] * q_head_stride + dims[None, :],
            mask=row_mask[:, None] & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        k_base = k + slot.to(tl.int64) * k_slot_stride + kv_head * k_head_stride
        v_base = v + slot.to(tl.int64) * v_slot_stride + kv_head * v_head_stride
        row = slot * slot_tokens
        first = tl.maximum(tile, task_begin)
        last = tl.minimum(end, task_end)
        top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        denominator = tl.zeros([BLOCK_ROWS], tl.float32)
        sums = tl.zeros([BLOCK_ROWS, BLOCK_V_DIM], tl.float32)
        tl.assume(first < last)
        for index in tl.range(first, last, num_stages=STAGES):
            start = task_start + (index - task_begin) * TILE
            position = tl.minimum(start, task_stop - TILE)
            keys, values = load_tile(
                k_rows, v_rows, k_base, v_base, row, position, kv_head, k_token_stride, v_token_stride,
                HEAD_DIM, V_HEAD_DIM, TILE, BLOCK_DIM, BLOCK_V_DIM,
            )  # fmt: skip
            top, denominator, sums = attend(
                query, keys, values, position + tokens >= start, top, denominator, sums, scale, LOGIT_CAP, False
            )
        span = worker - worker_of(task_begin, total, workers_used(total, workers))
        place = own_places + first_place + span * count + members
        place = place.to(tl.int64) * (kv_heads * GROUP) + heads
        tl.store(partial_lse + place, top + tl.log2(denominator), mask=row_mask)
        tl.store(
            partial + place[:, None] * V_HEAD_DIM + v_dims[None, :],
            sums * (v_factor / denominator)[:, None],
            mask=row_mask[:, None] & (v_dims[None, :] < V_HEAD_DIM),
        )
