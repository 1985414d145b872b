# SPDX-License-Identifier: Apache-2.0
"""Compile decode's kernels and the store for Hopper, without a GPU, decode's as a server of Llama-3-8B launches them.
Prints JSON.

A process of its own, since Triton interprets in the tests' where there is no GPU.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from vt_sglang.triton_kernels import decode_hopper, decode_plan, shared_hopper
from vt_sglang.triton_kernels.decode import MOST_COLUMNS, decode_kernel
from vt_sglang.triton_kernels.decode_plan import RUN_FIELDS, SHARED_ROWS, TASK_FIELDS, DecodeConfig
from vt_sglang.triton_kernels.merge import _WARPS, merge_kernel
from vt_sglang.triton_kernels.store import store_kernel, warps

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"

_GROUP, _DIM = 4, 128
_FLOATS = {"partial", "partial_lse", "k_scale", "v_scale"}
_HALVES = {"q", "k", "v", "out", "sinks"}
_INDICES = {"slots", "lengths"}


def _type(name: str) -> str:
    if name in _FLOATS:
        return "*fp32"
    if name in _HALVES:
        return "*bf16"
    if name in _INDICES:
        return "*i64"
    if name == "scaling":
        return "fp32"
    scalars = {"batch", "workers", "own_workers", "kv_heads", "own_places", "slot_tokens"}
    return "i32" if name in scalars or name.endswith("_stride") else "*i32"


def build(
    kernel: Any, constants: dict[str, Any], types: dict[str, str] | None = None, *, gluon: bool = False, **options: int
) -> dict[str, int]:
    """Bytes of registers spilled, and of shared memory.

    Args:
        constants: constexpr arguments, and those that are None.
        types: of arguments that `_type` does not know.
    """
    names = kernel.arg_names
    types = {name: _type(name) for name in names} | (types or {})
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [
        (at,)
        for at, name in enumerate(names)
        if signature[name].startswith("*") or name.endswith("_stride") or name == "slot_tokens"
    ]
    made = (GluonASTSource if gluon else ASTSource)(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {at: [["tt.divisibility", 16]] for at in aligned},
    )
    compiled = triton.compile(made, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        report = subprocess.run(
            [PTXAS, "-v", "--gpu-name=sm_90a", ptx, "-o", ptx.with_suffix(".cubin")],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    spilled = sum(int(found) for found in re.findall(r"(\d+) bytes spill stores", report))
    registers = max(int(found) for found in re.findall(r"Used (\d+) registers", report))
    return {"spilled": spilled, "shared": compiled.metadata.shared, "registers": registers}


def decode(*, tma: bool, tasks: bool, group: int = _GROUP, v_dim: int = _DIM) -> dict[str, int]:
    """The decode kernel, in the configuration that is chosen for a card with 200 KiB for tiles."""
    columns = group <= MOST_COLUMNS
    config = DecodeConfig.of(2 * _DIM * 2, 200 * 2**10, together=tasks)
    constants = {
        "RUN_FIELDS": RUN_FIELDS,
        "TASK_FIELDS": TASK_FIELDS,
        "GROUP": group,
        "HEAD_DIM": _DIM,
        "V_HEAD_DIM": v_dim,
        "LOGIT_CAP": 0.0,
        "WINDOW": -1,
        "TILE": config.tile,
        "BLOCK_ROWS": 64 if tasks else 16,
        "BLOCK_GROUP": MOST_COLUMNS if columns else max(16, triton.next_power_of_2(group)),
        "BLOCK_DIM": _DIM,
        "BLOCK_V_DIM": v_dim,
        "COLUMNS": columns,
        "SHARED_STAGES": config.shared_stages,
        "PDL": True,
        "sinks": None,
        "k_scale": None,
        "v_scale": None,
    }
    if not tasks:
        constants |= dict.fromkeys(("header", "tasks", "order", "task_runs"))
    descriptor = f"tensordesc<bf16[{config.tile}, {_DIM}]>"
    if not tma:
        constants |= dict.fromkeys(("k_rows", "v_rows"))
    rows = {"k_rows": descriptor, "v_rows": descriptor}
    return build(decode_kernel, constants, rows, num_warps=config.warps, num_stages=config.stages)


def decode_on_hopper(group: int, *, alone: bool = False) -> dict[str, int]:
    """The kernel for Hopper. alone: no other begins beside it."""
    options = decode_hopper.launch(group)
    constants = {
        "RUN_FIELDS": RUN_FIELDS,
        "GROUP": group,
        "HEAD_DIM": _DIM,
        "WINDOW": -1,
        "TILE": decode_hopper.TILE,
        "PARTS": decode_hopper.PARTS,
        "FIELDS": decode_hopper.FIELDS,
        "sinks": None,
    }
    registers = options.pop("maxnreg")
    constants |= options | ({"begun": None} if alone else {})
    layout = gl.NVMMASharedLayout(128, 16)
    sizes = {"q_rows": options["COLUMNS"], "k_rows": decode_hopper.TILE, "v_rows": decode_hopper.TILE}
    rows = {name: f"tensordesc<bf16[{of}, {_DIM}],{layout!r}>" for name, of in sizes.items()}
    return build(decode_hopper.decode_hopper_kernel, constants, rows, gluon=True, num_warps=4, maxnreg=registers)


def merge() -> dict[str, int]:
    """The merge, of requests that share on several levels."""
    constants = {
        "GROUP": _GROUP,
        "V_HEAD_DIM": _DIM,
        "BLOCK_LEVELS": 8,
        "BLOCK_PARTS": 32,
        "BLOCK_GROUP": _GROUP,
        "BLOCK_V_DIM": _DIM,
        "PDL": True,
        "sinks": None,
    }
    return build(merge_kernel, constants, num_warps=_WARPS)


def shared() -> dict[str, int]:
    """The kernel for shared tasks."""
    layout = gl.NVMMASharedLayout(128, 16)
    descriptor = f"tensordesc<bf16[{shared_hopper.TILE}, {_DIM}],{layout!r}>"
    constants = {
        "TASK_FIELDS": TASK_FIELDS,
        "GROUP": _GROUP,
        "HEAD_DIM": _DIM,
        "TILE": shared_hopper.TILE,
        "ROWS": SHARED_ROWS,
        "STAGES": shared_hopper.STAGES,
        "PRODUCER_REGISTERS": shared_hopper.PRODUCER_REGISTERS,
    }
    rows = {"k_rows": descriptor, "v_rows": descriptor}
    warps = SHARED_ROWS // 16
    options = {"num_warps": warps, "maxnreg": shared_hopper.REGISTERS}
    return build(shared_hopper.shared_hopper_kernel, constants, rows, gluon=True, **options)


def store(width: int, given: str, cache: str) -> dict[str, int]:
    """The store of keys and values of so many elements a token. Into float8 it scales."""
    finite = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp8e4nv": 448.0}
    block = triton.next_power_of_2(width)
    constants: dict[str, Any] = {
        "K_WIDTH": width,
        "V_WIDTH": width,
        "LARGEST": finite[cache],
        "BLOCK_K": block,
        "BLOCK_V": block,
        "PDL": True,
    }
    if cache == given:
        constants |= {"k_scale": None, "v_scale": None}
    types = {"k": given, "v": given, "k_cache": cache, "v_cache": cache, "locations": "i64"}
    pointers = {name: f"*{of}" for name, of in types.items()}
    return build(store_kernel, constants, pointers, num_warps=warps(width))


def stores() -> dict[str, int]:
    """Over the widths of KV that ask for another number of warps, in each type of cache."""
    types = [("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp8e4nv"), ("fp16", "fp8e4nv")]
    made = [store(width, *of) for width in (64, 512, 768, 1024) for of in types]
    return {name: max(it[name] for it in made) for name in made[0]}


def plans() -> dict[str, int]:
    """What a step is planned with."""
    plan = {"RUN_FIELDS": RUN_FIELDS, "TILE": 128, "WINDOW": -1, "BLOCK_BATCH": 256}
    parts = {"TASK_FIELDS": TASK_FIELDS, "LEVELS": 4, "BLOCK_LEVELS": 8}
    made = []
    for left_over in (False, True):
        made.append(build(decode_plan.plan_kernel, plan | {"LEFT_OVER": left_over}))
        made.append(build(decode_plan.parts_kernel, parts | {"LEFT_OVER": left_over}, num_warps=1))
    return {name: max(it[name] for it in made) for name in made[0]}


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "decode": decode(tma=True, tasks=False),
                "decode without TMA": decode(tma=False, tasks=False),
                "decode with tasks": decode(tma=True, tasks=True),
                "decode of 20 heads on one": decode(tma=True, tasks=False, group=20),
                "decode of narrower values, without TMA": decode(tma=False, tasks=False, v_dim=64),
                "decode on Hopper": decode_on_hopper(_GROUP),
                "decode on Hopper of 16 heads on one": decode_on_hopper(16),
                "decode on Hopper of 32 heads on one": decode_on_hopper(32),
                "decode on Hopper of 64 heads on one, alone": decode_on_hopper(64, alone=True),
                "merge": merge(),
                "shared tasks": shared(),
                "store": stores(),
                "plans": plans(),
            }
        )
    )
