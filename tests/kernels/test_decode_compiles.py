# SPDX-License-Identifier: Apache-2.0
"""Decode's kernels are compiled for Hopper without a GPU: what the interpreter takes need not compile, nor fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from decode_build import PTXAS
from vt_sglang.triton_kernels import shared_hopper

# Of a multiprocessor: bytes of shared memory, of which each program takes one KiB besides its own, and registers.
SHARED, OF_A_PROGRAM, REGISTERS = 228 * 2**10, 2**10, 2**16


@pytest.mark.skipif(not PTXAS.exists(), reason="this Triton comes without an assembler for NVIDIA GPUs")
def test_they_fit() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).parent / "decode_build.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    for name, took in made.items():
        assert took["shared"] + OF_A_PROGRAM <= SHARED, name
        if not name.endswith(("without TMA", "20 heads on one")):
            assert took["spilled"] <= 8, name
    # Decode's program and the one for shared tasks run side by side on Hopper.
    shared = made["shared tasks"]
    threads = 2 * 4 * 32  # the producer's warp is counted as four
    for name in ("decode on Hopper", "decode on Hopper of 16 heads on one", "decode on Hopper of 32 heads on one"):
        decode = made[name]
        assert decode["shared"] + shared["shared"] + 2 * OF_A_PROGRAM <= SHARED, name
        assert (decode["registers"] + shared_hopper.REGISTERS) * threads <= REGISTERS, name
    both = made["decode with tasks"]
    assert 2 * (both["shared"] + OF_A_PROGRAM) <= SHARED
    assert 2 * both["registers"] * 4 * 32 <= REGISTERS
