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
    """How the decode kernel is compiled and launched."""

    tile: int
    """Tokens a step."""
    warps: int
    stages: int
    """Tiles on their way from memory."""
    programs_per_multiprocessor: int

    @staticmethod
    def of(token_bytes: int, sequences: int, shared: int) -> "DecodeConfig":
        """What was measured to be fastest (docs/performance.md): one program a multiprocessor, with as much on its way
        from memory as fits; two smaller ones where there are so many sequences that each is short work.

        Args:
            token_bytes: of K and V of one token and KV head, each padded to a power of two.
            sequences: requests times KV heads.
            shared: bytes of shared memory for tiles.
        """
        programs, largest = (2, 64) if sequences >= 1024 else (1, 128)
        room = shared // programs // token_bytes  # tokens
        tile = largest
        while tile > 32 and 2 * tile > room:
            tile //= 2
        return DecodeConfig(tile, 4, max(2, min(4, room // tile)), programs)


class DecodePlan:
    """The cut of one batch's decode attention, for all layers of the same shape and window; and the scratch memory that
    they use, one after the other.

    Args:
        max_batch: most requests of a batch.
        kv_heads, group: KV heads, and query heads for each.
        head_dim, v_head_dim: elements of a head of K, and of V and the output.
        itemsize: bytes of an element of K and V.
        multiprocessors: of the device.
        window: tokens that a query sees before its own; negative: all.
        config: in place of the measured choice.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        kv_heads: int,
        group: int,
        head_dim: int,
        v_head_dim: int,
        itemsize: int,
        multiprocessors: int,
        device: torch.device | str,
        window: int = -1,
        config: DecodeConfig | None = None,
    ) -> None:
        self.window = window
        self.overlap_merge = torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        token_bytes = (triton.next_power_of_2(head_dim) + triton.next_power_of_2(v_head_dim)) * itemsize
        shared = shared_bytes(device)
        self._of = lambda batch: config or DecodeConfig.of(token_bytes, batch * kv_heads, shared)
        self._multiprocessors, self._kv_heads = multiprocessors, kv_heads
        most = max(self.workers(1), self.workers(max_batch))
        self.tile_ends = torch.zeros(max_batch, dtype=torch.int32, device=device)
        self.first_requests = torch.zeros(most, dtype=torch.int32, device=device)
        parts = (most, 2, kv_heads * group)
        self.partial = torch.empty((*parts, v_head_dim), dtype=torch.float32, device=device)
        self.partial_lse = torch.empty(parts, dtype=torch.float32, device=device)

    def config(self, batch: int) -> DecodeConfig:
        """How the kernel is launched for so many requests."""
        return self._of(batch)

    def workers(self, batch: int) -> int:
        """Among how many workers the tiles of so many requests are dealt, for each KV head."""
        return max(1, self._multiprocessors * self.config(batch).programs_per_multiprocessor // self._kv_heads)

    def update(self, lengths: torch.Tensor) -> None:
        """Cut the work anew.

        Args:
            lengths: [batch] int32 or int64, each request's tokens, on the device; 0: nothing to do.

        Raises:
            ValueError: the batch is larger than the plan was made for.
        """
        batch = lengths.shape[0]
        if batch > self.tile_ends.shape[0]:
            raise ValueError(f"{batch} requests in a plan made for {self.tile_ends.shape[0]}")
        plan_kernel[(self.workers(batch),)](
            lengths,
            self.tile_ends,
            self.first_requests,
            batch,
            TILE=self.config(batch).tile,
            WINDOW=self.window,
            BLOCK_BATCH=triton.next_power_of_2(batch),
        )
