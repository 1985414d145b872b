# SPDX-License-Identifier: Apache-2.0
"""How the tiles of decode attention are dealt out in runs.

What a request reads is cut into tiles of tokens. The tiles of all requests of a batch, one after the other, are dealt
to `workers`: worker w has the tiles [w * total / workers, (w + 1) * total / workers). A worker may so begin and end
inside requests, and a request may span many workers, whatever the lengths: no worker waits for a long request (the
"stream-K" decomposition, arXiv 2301.03598).

Multiprocessors do not read equally fast: on an H200, some by up to a tenth (docs/performance.md). So where there are
many tiles and the kernel can (decode_hopper.py), the last ones are left over, in rounds of as many runs as there are
workers, each round of half of what is left: whoever is done takes the next run ("factoring", doi
10.1145/135226.135232). Runs are numbered, first the workers' own.
"""

import torch
import triton
import triton.language as tl

# Of a multiprocessor's shared memory, what its programs may take for tiles at most, and what is left for all else.
_MOST_SHARED_BYTES, _OTHER_SHARED_BYTES = 200 * 2**10, 12 * 2**10


def shared_bytes(device: torch.device | str) -> int:
    """Shared memory for tiles: 200 KiB on an H200, 87 where a program may have 99 in all."""
    device = torch.device(device)
    if device.type != "cuda":
        return _MOST_SHARED_BYTES
    whole: int = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return min(_MOST_SHARED_BYTES, whole - _OTHER_SHARED_BYTES)


@triton.jit
def first_visible(length, WINDOW: tl.constexpr):
    """The first token that the last of `length` tokens sees: `WINDOW` tokens back, or all if that is negative."""
    if WINDOW < 0:
        return length * 0
    return tl.maximum(length - 1 - WINDOW, 0)


ROUNDS = tl.constexpr(5)
"""Most of the runs that are left over, as many to a round as workers."""

LEFT_ONE_IN = tl.constexpr(8)
"""Of all tiles, one in so many is left over."""

_LEAST_LEFT = tl.constexpr(2)  # tiles of a run


@triton.jit
def tiles_left(total, workers, LEFT_OVER: tl.constexpr):
    """(tiles that are left over, rounds in which they are taken)."""
    rounds = total * 0
    if not LEFT_OVER:
        return rounds, rounds
    left = total // LEFT_ONE_IN
    for halvings in tl.static_range(ROUNDS):
        rounds += ((left >> halvings) >= _LEAST_LEFT * workers).to(tl.int32)
    return tl.where(rounds > 0, left, 0), rounds


@triton.jit
def _round_start(index, left, rounds):
    """Tiles of the rounds before, of those left over."""
    return tl.where(index < rounds, left - (left >> index), left)


@triton.jit
def left_start(index, workers, left, rounds):
    """The first tile, of those left over, of one of their runs, or the one behind the last."""
    its_round = index // workers
    begin = _round_start(its_round, left, rounds)
    size = _round_start(its_round + 1, left, rounds) - begin
    return begin + run_start(index % workers, size, workers)


@triton.jit
def left_run_of(tile, workers, left, rounds):
    """The run in which one of the tiles is that are left over."""
    its_round = tile * 0
    for index in tl.static_range(1, ROUNDS):
        its_round += ((index < rounds) & (tile >= _round_start(index, left, rounds))).to(tl.int32)
    begin = _round_start(its_round, left, rounds)
    size = tl.maximum(_round_start(its_round + 1, left, rounds) - begin, 1)
    return its_round * workers + worker_of(tile - begin, size, workers)


@triton.jit
def workers_used(total, workers):
    """How many workers have anything to do: no run is empty."""
    return tl.minimum(total, workers)


@triton.jit
def run_start(worker, total, used):
    """The first tile of a worker's run."""
    return (worker.to(tl.int64) * total // used).to(tl.int32)


@triton.jit
def worker_of(tile, total, used):
    """The worker in whose run a tile is: the last one whose run starts at it or before."""
    return (((tile + 1).to(tl.int64) * used - 1) // total).to(tl.int32)
