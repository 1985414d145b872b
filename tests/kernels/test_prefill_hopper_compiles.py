# SPDX-License-Identifier: Apache-2.0
"""Prefill's kernels are compiled for Hopper without a GPU: Gluon is not interpreted, and has to fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from decode_build import PTXAS


@pytest.mark.skipif(not PTXAS.exists(), reason="this Triton comes without an assembler for NVIDIA GPUs")
def test_they_fit() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).parent / "prefill_hopper_build.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, took in json.loads(done.stdout).items():
        assert took["shared"] <= 227 * 2**10, name
        # A word or two that are made once, before the warps part.
        assert took["spilled"] <= 8, name
