# SPDX-License-Identifier: Apache-2.0
"""Decode on Hopper: decode.py's mathematics by warps with roles, each in a file of its own.

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
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .checks import Strides, on_hopper
from .decode_hopper_consumer import consumer
from .decode_hopper_producer import producer
from .decode_plan import MOST_ON_HOPPER, RUN_FIELDS, SHARED_ROWS, DecodeConfig, DecodePlan
from .rows import gluon_heads, gluon_rows, heads_in_rows, in_rows

TILE = 64
"""Tokens a step."""

STAGES = 4  # tiles of K, and of V, in shared memory
CONFIG = DecodeConfig(TILE, 4, STAGES, 1, left_over=True)
"""What a plan is made with whose requests' own tokens this kernel reads."""

PARTS = 3  # of which the producer has told the consumer; and numbers that describe one
FIELDS = 4
_HEAD_DIM = 128


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
                consumer,
                (
                    q, k, v, out, partial, partial_lse, sinks, q_smem, p_smem, k_smem, v_smem, k_full, k_empty, v_full,
                    v_empty, told, told_full, told_empty, slots, lengths, short_requests, shorts, own_workers, kv_heads,
                    q_batch_stride, q_head_stride, k_slot_stride, k_token_stride, k_head_stride, v_slot_stride,
                    v_token_stride, v_head_stride, out_batch_stride, out_head_stride, scaling,
                    GROUP, HEAD_DIM, WINDOW, TILE, COLUMNS, STAGES, PARTS, FIELDS,
                ),
            ),
            (
                producer,
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


def can_read(k: torch.Tensor, v: torch.Tensor, group: int) -> bool:
    """Whether the kernel, and the one for shared tasks, can read a layer's K and V.

    Args:
        k: [slots, slot_tokens, kv_heads, head_dim].
        v: [slots, slot_tokens, kv_heads, v_head_dim].
        group: query heads of a KV head.
    """
    return (
        group <= MOST_ON_HOPPER
        and on_hopper(k.device)
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
