# SPDX-License-Identifier: Apache-2.0
"""Compile the Hopper prefill kernel and print what it takes, as JSON: DTYPE GROUP HEAD_DIM SINKS(0 or 1)."""

import json
import re
import sys
import tempfile
from pathlib import Path

from aot import compile_for_hopper, descriptor
from vt_sglang.triton_kernels import prefill_hopper
from vt_sglang.triton_kernels.prefill_hopper_plan import FIELDS, ROWS, TILE


def main(dtype: str, group: int, head_dim: int, sinks: bool) -> None:
    kernel = prefill_hopper.prefill_hopper_kernel
    rows = ROWS // prefill_hopper._CONSUMERS
    types = {
        "q_rows": descriptor(dtype, [rows // group, group, head_dim]),
        "k_rows": descriptor(dtype, [TILE, head_dim]),
        "v_rows": descriptor(dtype, [TILE, head_dim]),
        "q": f"*{dtype}",
        "out": f"*{dtype}",
        "partial": "*fp32",
        "partial_lse": "*fp32",
        "records": "*i32",
        "slots": "*i64",
        "sinks": "*bf16",
        "scaling": "fp32",
    }
    constants = {
        "FIELDS": FIELDS,
        "KV_HEADS": 8,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "TILE": TILE,
        "CONSUMERS": prefill_hopper._CONSUMERS,
        "ROWS": rows,
        "STAGES": prefill_hopper._STAGES,
        "REGISTERS": prefill_hopper._REGISTERS,
        "PRODUCER_REGISTERS": prefill_hopper._PRODUCER_REGISTERS,
    }
    constants |= {} if sinks else {"sinks": None}
    constants |= {"q_rows": None} if rows % group else {}
    numbers = {name: "i32" for name in kernel.arg_names if name not in types | constants}
    with tempfile.TemporaryDirectory() as folder:
        made = compile_for_hopper(kernel, types | numbers, constants, prefill_hopper._WARPS, Path(folder))
    registers = {int(count) for count in re.findall(r"setmaxnreg\.inc\.sync\.aligned\.u32\s+(\d+)", made.ptx)}
    print(
        json.dumps({"spilled": made.spilled_bytes, "shared": made.shared_bytes, "registers": sorted(registers)}),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1")
