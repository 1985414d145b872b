# SPDX-License-Identifier: Apache-2.0
"""How decode attention is cut into equal work.

A request's visible tokens are cut into tiles of `TILE` tokens, at multiples of `TILE` from its first token. The tiles
of all requests of a batch, one after the other, are dealt to `workers` in runs of equal length: worker w has the tiles
[w * total / workers, (w + 1) * total / workers). A worker may so begin and end inside requests, and a request may span
many workers, whatever the lengths: no worker waits for a long request (the "stream-K" decomposition, arXiv 2301.03598).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

# Of a multiprocessor's shared memory, what one of two programs may take.
_SHARED_BYTES = 100 * 2**10


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


@triton.jit
def plan_kernel(
    lengths,  # [batch] int32 or int64
    tile_ends,  # [batch] int32, written: tiles of the requests up to and with this one
    first_requests,  # [workers] int32, written: the request in which a worker's run starts
    batch,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """One program a worker, each for itself: a batch's lengths are few."""
    worker = tl.program_id(0)
    workers = tl.num_programs(0)
    requests = tl.arange(0, BLOCK_BATCH)
    length = tl.load(lengths + requests, mask=requests < batch, other=0).to(tl.int32)
    tiles = tl.cdiv(length, TILE) - first_visible(length, WINDOW) // TILE
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    if worker == 0:
        tl.store(tile_ends + requests, ends, mask=requests < batch)
    start = run_start(worker, total, tl.maximum(workers_used(total, workers), 1))
    tl.store(first_requests + worker, tl.sum(((ends <= start) & (requests < batch)).to(tl.int32), 0))


@dataclass(frozen=True)
class DecodeConfig:
    """How the decode kernel is compiled."""

    tile: int = 64
    """Tokens a step."""
    warps: int = 4
    stages: int = 3
    """Tiles on their way from memory."""
    programs_per_multiprocessor: int = 2

    @staticmethod
    def of(head_dim: int, v_head_dim: int, itemsize: int) -> "DecodeConfig":
        """The configuration for heads of these sizes: as many tiles on their way as two programs have memory for."""
        width = triton.next_power_of_2(head_dim) + triton.next_power_of_2(v_head_dim)
        tile = 64 if width * itemsize <= 1024 else 32
        return DecodeConfig(tile=tile, stages=max(2, min(4, _SHARED_BYTES // (tile * width * itemsize))))


class DecodePlan:
    """The cut of one batch's decode attention, for all layers of the same shape and window; and the scratch memory that
    they use, one after the other.

    Args:
        max_batch: most requests of a batch.
        kv_heads, group: KV heads, and query heads for each.
        v_head_dim: elements of a head of V and of the output.
        multiprocessors: of the device.
        window: tokens that a query sees before its own; negative: all.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        kv_heads: int,
        group: int,
        v_head_dim: int,
        multiprocessors: int,
        device: torch.device | str,
        window: int = -1,
        config: DecodeConfig = DecodeConfig(),
    ) -> None:
        self.config = config
        self.window = window
        self.workers = max(1, multiprocessors * config.programs_per_multiprocessor // kv_heads)
        self.tile_ends = torch.zeros(max_batch, dtype=torch.int32, device=device)
        self.first_requests = torch.zeros(self.workers, dtype=torch.int32, device=device)
        parts = (kv_heads, self.workers, 2, group)
        self.partial = torch.empty((*parts, v_head_dim), dtype=torch.float32, device=device)
        self.partial_lse = torch.empty(parts, dtype=torch.float32, device=device)

    def update(self, lengths: torch.Tensor) -> None:
        """Cut the work anew.

        Args:
            lengths: [batch] int32 or int64, each request's tokens, on the device; 0: nothing to do.
        """
        batch = lengths.shape[0]
        plan_kernel[(self.workers,)](
            lengths,
            self.tile_ends,
            self.first_requests,
            batch,
            TILE=self.config.tile,
            WINDOW=self.window,
            BLOCK_BATCH=triton.next_power_of_2(batch),
        )
