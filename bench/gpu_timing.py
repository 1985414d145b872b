# SPDX-License-Identifier: Apache-2.0
"""Times on a GPU: medians of CUDA-graph replays, and the rate at which memory can be read at all."""

import statistics
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl


def graph_seconds(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Median seconds of one of `calls`, which are captured one after the other in a CUDA graph. They should read
    different memory, more of it together than the L2 cache holds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times) / len(calls)


@triton.jit
def _read_kernel(data, out, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK * STEPS
    total = tl.zeros([BLOCK], tl.int32)
    for step in range(STEPS):
        total += tl.load(data + first + step * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


def read_ceiling(gigabytes: int = 4) -> float:
    """Bytes a second that the GPU reads when nothing else is asked of it: a sum over contiguous memory."""
    block, steps = 4096, 16
    programs = gigabytes * 2**30 // (4 * block * steps)
    data = torch.randint(0, 2**31 - 1, (programs * block * steps,), dtype=torch.int32, device="cuda")
    out = torch.empty(programs, dtype=torch.int32, device="cuda")
    seconds = graph_seconds([lambda: _read_kernel[(programs,)](data, out, BLOCK=block, STEPS=steps, num_warps=8)])
    return data.numel() * 4 / seconds
