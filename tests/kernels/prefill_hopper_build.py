# SPDX-License-Identifier: Apache-2.0
"""Compile prefill's kernels for Hopper, without a GPU, in a process of its own as decode_build.py. Prints JSON."""

import json
from typing import Any

from decode_build import build
from triton.experimental.gluon import language as gl
from vt_sglang.triton_kernels import prefill_hopper, prefill_merge
from vt_sglang.triton_kernels.prefill import prefill_plan_kernel
from vt_sglang.triton_kernels.prefill_hopper_plan import FIELDS, ROWS, TILE


def prefill(dtype: str, *, group: int, head_dim: int, sinks: bool) -> dict[str, int]:
    """The prefill kernel: queries come by TMA where a consumer's rows are whole tokens."""
    rows = ROWS // prefill_hopper.CONSUMERS

    def descriptor(*block: int) -> str:
        return f"tensordesc<{dtype}{list(block)},{gl.NVMMASharedLayout(128, 16, rank=len(block))!r}>"

    types = {
        "q_rows": descriptor(rows // group, group, head_dim),
        "k_rows": descriptor(TILE, head_dim),
        "v_rows": descriptor(TILE, head_dim),
        "q": f"*{dtype}",
        "out": f"*{dtype}",
        "items": "i32",
    }
    constants = {
        "FIELDS": FIELDS,
        "KV_HEADS": 8,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "TILE": TILE,
        "CONSUMERS": prefill_hopper.CONSUMERS,
        "ROWS": rows,
        "STAGES": prefill_hopper.STAGES,
        "REGISTERS": prefill_hopper.REGISTERS,
        "PRODUCER_REGISTERS": prefill_hopper.PRODUCER_REGISTERS,
    }
    constants |= {} if sinks else {"sinks": None}
    constants |= {"q_rows": None} if rows % group else {}
    return build(prefill_hopper.prefill_hopper_kernel, constants, types, gluon=True, num_warps=rows // 16)


def merge() -> dict[str, int]:
    """The merge of divided rows."""
    constants = {"GROUP": 4, "HEAD_DIM": 128, "ROWS": ROWS, "FIELDS": FIELDS, "BLOCK_ROWS": prefill_merge.BLOCK_ROWS}
    return build(prefill_merge.prefill_merge_kernel, constants | {"sinks": None}, num_warps=4)


def plan(*, some: bool) -> dict[str, int]:
    """What deals out the rows of all requests, or of some, to the kernel for all GPUs."""
    constants: dict[str, Any] = {"GROUP": 4, "BLOCK_ROWS": 64, "BLOCK_BATCH": 256}
    return build(prefill_plan_kernel, constants | ({} if some else {"among": None}), num_warps=4)


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "4 query heads of a KV head": prefill("bf16", group=4, head_dim=128, sinks=False),
                "5 query heads, float16, sinks": prefill("fp16", group=5, head_dim=128, sinks=True),
                "heads of 64": prefill("bf16", group=8, head_dim=64, sinks=False),
                "merge": merge(),
                "plan": plan(some=False),
                "plan of some requests": plan(some=True),
            }
        )
    )
