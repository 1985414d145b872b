# SPDX-License-Identifier: Apache-2.0
"""Compile Gluon kernels for Hopper without a GPU, and ask the assembler what they take. Not where Triton interprets."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes."""

    spilled_bytes: int
    """Of registers, stored to the stack."""
    shared_bytes: int
    ptx: str


def descriptor(dtype: str, block: list[int]) -> str:
    """The type of a TMA descriptor whose blocks lie in shared memory as tensor cores read them."""
    return f"tensordesc<{dtype}{block},{gl.NVMMASharedLayout(128, 16, rank=len(block))!r}>"


def compile_for_hopper(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, folder: Path
) -> Compiled:
    """Compile a kernel.

    Args:
        kernel: a function of gluon.jit.
        types: of the arguments that are no constants; pointers and strides are taken to be multiples of 16.
        constants: the others.
        warps: as num_warps.
        folder: for the assembler's files.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [
        (index,)
        for index, name in enumerate(names)
        if signature[name].startswith("*") or name.endswith(("_stride", "slot_tokens"))
    ]
    source = GluonASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {key: [["tt.divisibility", 16]] for key in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    ptx = folder / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    report = subprocess.run(
        [PTXAS, "-v", "--gpu-name=sm_90a", ptx, "-o", folder / "kernel.cubin"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    spilled = re.search(r"(\d+) bytes spill stores", report)
    assert spilled is not None, report
    return Compiled(int(spilled[1]), compiled.metadata.shared, compiled.asm["ptx"])
