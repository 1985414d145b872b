# SPDX-License-Identifier: Apache-2.0
"""How the tiles of decode attention are dealt out in equal runs.

What a request reads is cut into tiles of tokens. The tiles of all requests of a batch, one after the other, are dealt
to `workers`: worker w has the tiles [w * total / workers, (w + 1) * total / workers). A worker may so begin and end
inside requests, and a request may span many workers, whatever the lengths: no worker waits for a long request (the
"stream-K" decomposition, arXiv 2301.03598).
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
