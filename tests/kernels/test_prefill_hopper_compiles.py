# SPDX-License-Identifier: Apache-2.0
"""The Hopper prefill kernel is compiled without a GPU: it has to fit into registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aot import PTXAS
from vt_sglang.triton_kernels import prefill_hopper

pytestmark = pytest.mark.skipif(not PTXAS.exists(), reason="this Triton comes without an assembler for NVIDIA GPUs")


@pytest.mark.parametrize("kind", ["bf16 4 128 0", "fp16 5 128 1", "bf16 8 64 0"])
def test_it_fits(kind: str) -> None:
    """In a process of its own: where there is no GPU, Triton interprets in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).parent / "prefill_hopper_build.py"), *kind.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["spilled"] <= 8, "more is spilled than a word or two that are made once, before the warps part"
    assert made["shared"] <= 227 * 2**10
    assert prefill_hopper._REGISTERS in made["registers"], "the consumers do not get the registers that were measured"
