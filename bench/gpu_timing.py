# SPDX-License-Identifier: Apache-2.0
"""Times on a GPU: medians of CUDA-graph replays, and the rates at which it reads and computes at all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import triton
import triton.language as tl

WARM_UP_S = 0.3
"""For which the sides run before they are measured."""


def _captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
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
    return graph


def sides_seconds(sides: Mapping[str, Sequence[Callable[[], object]]], replays: int = 25) -> dict[str, float]:
    """Median seconds of one call of each side. A side's calls are captured one after the other in a CUDA graph; they
    should read different memory, more of it together than the L2 cache holds. The sides take turns, in an order that is
    drawn for each round, so that what the clocks and the memory do in the meantime is the same for all; and first they
    run for a while, until the clocks are those of a GPU at work."""
    graphs = {name: _captured(calls) for name, calls in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    begun = time.monotonic()
    while time.monotonic() - begun < WARM_UP_S:
        for graph in graphs.values():
            graph.replay()
        torch.cuda.synchronize()
    names, drawn = list(sides), random.Random(1)
    for _ in range(replays):
        drawn.shuffle(names)
        for name in names:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graphs[name].replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(its) / len(sides[name]) for name, its in times.items()}


def graph_seconds(calls: Sequence[Callable[[], object]], replays: int = 25) -> float:
    """The same for one side alone."""
    return sides_seconds({"": calls}, replays)[""]


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


def matmul_ceiling(size: int = 8192) -> float:
    """Floating-point operations a second of a plain product of two square matrices in bfloat16, as PyTorch makes it."""
    left, right = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / graph_seconds([lambda: torch.matmul(left, right, out=out)])
