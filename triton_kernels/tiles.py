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

TASK_FIELDS = 8
"""Numbers that describe a shared task: slot, first token, token behind its last, place of its first member in `order`,
members, place of its first partial result, tiles of the tasks up to and with this one; one is left free."""

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
    shared_ends,  # [batch] int32: up to which token others' tasks read for a request; or None
    starts,  # [batch] int32, written: the first token that a request reads by itself
    tile_ends,  # [batch] int32, written: tiles of the requests up to and with this one, short ones left out
    ranks,  # [batch] int32, written: a request's place among those not short; -1: it is short or has no token
    long_requests,  # [batch] int32, written: the requests by rank
    short_requests,  # [batch] int32, written: requests shorter than a tile
    shorts,  # [1] int32, written: how many these are
    first_ranks,  # [workers] int32, written: the rank in which a worker's run starts
    last_ranks,  # [workers] int32, written: the rank in which it ends; less than the first: there is none
    batch,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """One program a worker, each for itself: a batch's lengths are few."""
    worker = tl.program_id(0)
    workers = tl.num_programs(0)
    requests = tl.arange(0, BLOCK_BATCH)
    mask = requests < batch
    length = tl.load(lengths + requests, mask=mask, other=0).to(tl.int32)
    start = first_visible(length, WINDOW)
    is_long = length >= TILE
    if shared_ends is not None:
        start = tl.where(is_long, tl.maximum(start, tl.load(shared_ends + requests, mask=mask, other=0)), start)
    is_short = (length > 0) & (length < TILE)
    tiles = tl.where(is_long, tl.cdiv(length - start, TILE), 0)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    if worker == 0:
        rank = tl.cumsum(is_long.to(tl.int32), 0) - 1
        tl.store(starts + requests, start, mask=mask)
        tl.store(tile_ends + requests, ends, mask=mask)
        tl.store(ranks + requests, tl.where(is_long, rank, -1), mask=mask)
        tl.store(long_requests + rank, requests, mask=is_long)
        tl.store(short_requests + tl.cumsum(is_short.to(tl.int32), 0) - 1, requests, mask=is_short)
        tl.store(shorts, tl.sum(is_short.to(tl.int32), 0))
    used = workers_used(total, workers)
    run = run_start(worker, total, tl.maximum(used, 1))
    stop = run_start(worker + 1, total, tl.maximum(used, 1))
    first = tl.sum((is_long & (ends <= run)).to(tl.int32), 0)
    last = tl.sum((is_long & (ends < stop)).to(tl.int32), 0)
    tl.store(first_ranks + worker, tl.where(worker < used, first, 0))
    tl.store(last_ranks + worker, tl.where(worker < used, last, -1))


@triton.jit
def plan_tasks_kernel(
    tasks,  # [tasks, TASK_FIELDS] int32
    task_count,  # [1] int32
    shared_tiles,  # [1] int32
    first_tasks,  # [workers] int32, written: the task in which a worker's run starts
    last_tasks,  # [workers] int32, written: the task in which it ends; less than the first: there is none
    TASK_FIELDS: tl.constexpr,
    BLOCK_TASKS: tl.constexpr,
):
    """One program a worker."""
    worker = tl.program_id(0)
    total = tl.load(shared_tiles)
    used = workers_used(total, tl.num_programs(0))
    index = tl.arange(0, BLOCK_TASKS)
    mask = index < tl.load(task_count)
    ends = tl.load(tasks + index * TASK_FIELDS + 6, mask=mask, other=0)
    run = run_start(worker, total, tl.maximum(used, 1))
    stop = run_start(worker + 1, total, tl.maximum(used, 1))
    first = tl.sum((mask & (ends <= run)).to(tl.int32), 0)
    last = tl.sum((mask & (ends < stop)).to(tl.int32), 0)
    tl.store(first_tasks + worker, tl.where(worker < used, first, 0))
    tl.store(last_tasks + worker, tl.where(worker < used, last, -1))


@dataclass(frozen=True)
class DecodeConfig:
    """How the decode kernel is compiled and launched."""

    tile: int
    """Tokens a step."""
    warps: int
    stages: int
    """Tiles on their way from memory."""
    programs_per_multiprocessor: int
    shared_stages: int = 3
    """The same of what requests share."""

    @staticmethod
    def of(token_bytes: int, sequences: int, shared: int, *, together: bool = False) -> "DecodeConfig":
        """What was measured to be fastest (docs/performance.md): one program a multiprocessor, with as much on its way
        from memory as fits; two smaller ones where there are so many sequences that each is short work, and where one
        is for what requests read together.

        Args:
            token_bytes: of K and V of one token and KV head, each padded to a power of two.
            sequences: requests times KV heads.
            shared: bytes of shared memory for tiles.
            together: whether there may be shared tasks.
        """
        small = together or sequences >= 1024
        room = shared // (2 if small else 1) // token_bytes  # tokens
        tile = 64 if small else 128
        while tile > 32 and 2 * tile > room:
            tile //= 2
        # The loads of all stages but one are on their way.
        stages = max(2, min(4, room // tile + 1))
        return DecodeConfig(tile, 4, stages, 2 if small and not together else 1, max(2, stages - 1))


class SharedTasks:
    """What the requests of a batch read together, for all layers of the same shape; the scratch memory for its results.

    A task is a stretch of tokens that `count` requests share: they are `order[first : first + count]`, and any one's
    slot holds it. A request's tasks follow each other from its first token on, and end where its own part begins, at
    `ends`; none ends before a tile's length.

    Args:
        max_batch: most requests of a batch.
        max_tasks: most tasks.
        max_levels: most tasks of one request.
        max_places: most partial results: the sum, over tasks, of members times workers that have a tile of it.
        members: most requests of a task.
        workers: for each KV head.
        heads, v_head_dim: of the queries and the output.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_tasks: int,
        max_levels: int,
        max_places: int,
        members: int,
        workers: int,
        heads: int,
        v_head_dim: int,
        device: torch.device | str,
    ) -> None:
        self.members = members
        """Most requests of a task."""
        self.workers = workers
        """Workers for each KV head."""
        self.sizes = (1, 1, max_tasks * TASK_FIELDS, max_batch, max_batch, max_batch, max_batch * max_levels)
        """int32 words of a plan's parts, in the order that `copy` names."""
        self.host_words = sum(self.sizes)
        self._words = torch.zeros(self.host_words, dtype=torch.int32, device=device)
        self.count, self.tiles, tasks, self.order, self.places, self.ends, levels = self._words.split(self.sizes)
        self.tasks = tasks.view(max_tasks, TASK_FIELDS)
        self.levels = levels.view(max_batch, max_levels)
        levels.fill_(-1)
        self.first_tasks = torch.zeros(workers, dtype=torch.int32, device=device)
        self.last_tasks = torch.full_like(self.first_tasks, -1)
        self.partial = torch.empty((max_places, heads, v_head_dim), dtype=torch.float32, device=device)
        self.partial_lse = torch.empty((max_places, heads), dtype=torch.float32, device=device)

    def copy(self, words: torch.Tensor) -> None:
        """Take a plan made on the host.

        Args:
            words: [host_words] int32: tasks, their tiles, then `tasks`, `order`, `places`, `ends` and `levels`. From
                pinned memory the copy is asynchronous, and may not be changed before it is done.
        """
        self._words.copy_(words, non_blocking=True)

    def update(self) -> None:
        """Deal the tasks to the workers; on the device alone."""
        plan_tasks_kernel[(self.workers,)](
            self.tasks,
            self.count,
            self.tiles,
            self.first_tasks,
            self.last_tasks,
            TASK_FIELDS=TASK_FIELDS,
            BLOCK_TASKS=triton.next_power_of_2(self.tasks.shape[0]),
        )


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
        shared: what requests read together, which the same calls read; not with a window.
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
        shared: SharedTasks | None = None,
    ) -> None:
        self.window = window
        self.shared = shared
        self.overlap_merge = torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        token_bytes = (triton.next_power_of_2(head_dim) + triton.next_power_of_2(v_head_dim)) * itemsize
        together = shared is not None
        room = shared_bytes(device)
        self._of = lambda batch: config or DecodeConfig.of(token_bytes, batch * kv_heads, room, together=together)
        self._multiprocessors, self._kv_heads = multiprocessors, kv_heads
        self.max_workers = max(self.workers(1), self.workers(max_batch))
        """Most workers for each KV head, whatever the batch."""

        def words(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        self.starts, self.tile_ends, self.ranks = words(max_batch), words(max_batch), words(max_batch)
        self.long_requests, self.short_requests, self.shorts = words(max_batch), words(max_batch), words(1)
        self.first_ranks, self.last_ranks = words(self.max_workers), words(self.max_workers)
        # A step from one part to the next along the tiles is one to the next request, the next worker, or both.
        parts = (max_batch + self.max_workers, kv_heads * group)
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
            self.shared and self.shared.ends,
            self.starts,
            self.tile_ends,
            self.ranks,
            self.long_requests,
            self.short_requests,
            self.shorts,
            self.first_ranks,
            self.last_ranks,
            batch,
            TILE=self.config(batch).tile,
            WINDOW=self.window,
            BLOCK_BATCH=triton.next_power_of_2(batch),
        )
        if self.shared is not None:
            self.shared.update()
