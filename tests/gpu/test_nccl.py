# SPDX-License-Identifier: Apache-2.0
"""NCCL between two GPUs, directly on the pages of virtual tensors."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0

pytestmark = pytest.mark.skipif(COUNT < 2, reason=f"needs two GPUs, and this machine has {COUNT}")


@pytest.mark.parametrize("exportable", ["0", "1"], ids=["plain pages", "exportable pages"])
def test_all_reduce_and_send_in_place(exportable: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "nccl_rank.py"), "nccl"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(port), exportable], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    for rank, process in enumerate(ranks):
        assert process.returncode == 0, f"rank {rank}:\n{told[rank][-4000:]}"
