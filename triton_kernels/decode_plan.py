# SPDX-License-Identifier: Apache-2.0
"""What a step's decode is planned with: who reads what, and which partial results are merged. Worked out once a step,
on the device, so that a CUDA graph may capture it with what uses it; what requests share, the host plans.

A request reads by itself what its last token sees and no shared task reads for it, in tiles from there on.
"""

import operator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .checks import INDICES, Heads, at_least, check_vector, on_hopper
from .launches import dependent_launch
from .tiles import (
    LEFT_ONE_IN,
    ROUNDS,
    first_visible,
    left_run_of,
    left_start,
    run_start,
    shared_bytes,
    tiles_left,
    worker_of,
    workers_used,
)

TASK_FIELDS = 8
"""Numbers that describe a shared task: slot, first token, the one behind its last, position of its first member in the
order, members, place of its first partial result, tiles of the tasks up to and with this one, workers that these are
dealt to."""

RUN_FIELDS = 8
"""Numbers that describe a request to the decode kernel: request, first token that it reads by itself, length, slot,
whether that is all it reads; three are left free, so that none is in two lines of the cache."""

SHARED_ROWS = 64
"""Query heads for which a shared task's tile is read once."""

MOST_ON_HOPPER = 64
"""Query heads of a KV head that decode_hopper.py takes at most: columns of a product."""

SHARED_READ = 4
"""Tasks of one stretch that are reckoned to read it from memory once: what one has read, the others find in the L2
cache (docs/performance.md)."""

HEADER = 8
"""Numbers before a plan's tasks: tasks, tiles, and what the host keeps there."""


@triton.jit(do_not_specialize_on_alignment=["slots", "lengths"])
def plan_kernel(
    slots,  # [batch] int32 or int64
    lengths,  # [batch] int32 or int64
    shared_ends,  # [batch] int32: up to which token others' tasks read for a request; or None
    ranks,  # [batch] int32, written: a request's place among those not short; -1: it is short or has no token
    ends,  # [batch] int32, written: tiles of the requests up to and with this one
    requests,  # [batch, RUN_FIELDS] int32, written: by rank, what the decode kernel has to know of a request
    rank_ends,  # [batch + 1] int32, written: by rank, tiles of all requests before
    short_requests,  # [batch] int32, written: requests shorter than a tile
    shorts,  # [1] int32, written: how many these are
    runs,  # [runs, 4] int32, written: first and last rank, first tile and the one behind the last
    runs_left,  # [1] int32, written: runs behind the workers' own that whoever is done takes
    runs_taken,  # [1] int32, written: 0; what is counted is counted anew even if a step before was not ended
    batch,
    workers,
    RUN_FIELDS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    LEFT_OVER: tl.constexpr,
):
    """One program a run, each for itself: a batch's lengths are few."""
    run = tl.program_id(0)
    request = tl.arange(0, BLOCK_BATCH)
    mask = request < batch
    length = tl.load(lengths + request, mask=mask, other=0).to(tl.int32)
    start = first_visible(length, WINDOW)
    is_long = length >= TILE
    is_short = (length > 0) & (length < TILE)
    alone = is_long
    if shared_ends is not None:
        shared = tl.load(shared_ends + request, mask=mask, other=0)
        start = tl.where(is_long, tl.maximum(start, shared), start)
        alone &= shared == 0
    tiles = tl.where(is_long, tl.cdiv(length - start, TILE), 0)
    tile_ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    left, rounds = tiles_left(total, workers, LEFT_OVER)
    if run == 0:
        rank = tl.cumsum(is_long.to(tl.int32), 0) - 1
        tl.store(ranks + request, tl.where(is_long, rank, -1), mask=mask)
        tl.store(ends + request, tile_ends, mask=mask)
        at = requests + rank * RUN_FIELDS
        tl.store(at, request, mask=is_long)
        tl.store(at + 1, start, mask=is_long)
        tl.store(at + 2, length, mask=is_long)
        tl.store(at + 3, tl.load(slots + request, mask=mask, other=0).to(tl.int32), mask=is_long)
        tl.store(at + 4, alone.to(tl.int32), mask=is_long)
        tl.store(rank_ends + rank + 1, tile_ends, mask=is_long)
        tl.store(short_requests + tl.cumsum(is_short.to(tl.int32), 0) - 1, request, mask=is_short)
        tl.store(shorts, tl.sum(is_short.to(tl.int32), 0))
        tl.store(runs_left, rounds * workers)
        tl.store(runs_taken, 0)
    dealt = total - left
    used = workers_used(dealt, workers)
    if run < workers:
        first = run_start(run, dealt, tl.maximum(used, 1))
        end = run_start(run + 1, dealt, tl.maximum(used, 1))
        there = run < used
    else:
        first = dealt + left_start(run - workers, workers, left, rounds)
        end = dealt + left_start(run + 1 - workers, workers, left, rounds)
        there = run < workers + rounds * workers
    at = runs + run * 4
    tl.store(at, tl.where(there, tl.sum((is_long & (tile_ends <= first)).to(tl.int32), 0), 0))
    tl.store(at + 1, tl.where(there, tl.sum((is_long & (tile_ends < end)).to(tl.int32), 0), -1))
    tl.store(at + 2, first)
    tl.store(at + 3, end)


@triton.jit
def _run_of(tile, total, workers, LEFT_OVER: tl.constexpr):
    """The run in which a tile is."""
    left, rounds = tiles_left(total, workers, LEFT_OVER)
    dealt = total - left
    own = worker_of(tl.minimum(tile, dealt - 1), tl.maximum(dealt, 1), workers_used(dealt, workers))
    return tl.where(tile < dealt, own, workers + left_run_of(tl.maximum(tile - dealt, 0), workers, left, rounds))


@triton.jit(do_not_specialize_on_alignment=["lengths"])
def parts_kernel(
    lengths,  # [batch] int32 or int64
    ranks,  # [batch] int32
    ends,  # [batch] int32
    tasks,  # [tasks, TASK_FIELDS] int32, or None
    positions,  # [batch] int32
    row_tasks,  # [batch, LEVELS] int32
    parts,  # [batch, 3, BLOCK_LEVELS] int32, written: of a request's parts of its own, and then of each of its tasks,
    # the place of the first, the step from one to the next, and how many there are up to and with these. No parts:
    # there is nothing to merge; -1: the request has no token
    workers,
    own_places,
    TASK_FIELDS: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
    LEFT_OVER: tl.constexpr,
):
    """One program a request."""
    request = tl.program_id(0)
    rank = tl.load(ranks + request)
    total = tl.maximum(tl.load(ends + tl.num_programs(0) - 1), 1)
    end = tl.load(ends + request)
    begin = tl.load(ends + request - 1, mask=request > 0, other=0)
    first = _run_of(begin, total, workers, LEFT_OVER)
    last = _run_of(end - 1, total, workers, LEFT_OVER)
    level = tl.arange(0, BLOCK_LEVELS)
    place = tl.where(level == 0, rank + first, 0)
    step = tl.where(level == 0, 1, 0)
    count = tl.where(level == 0, last + 1 - first, 0)
    if tasks is not None:
        task = tl.load(row_tasks + request * LEVELS + level - 1, mask=(level > 0) & (level <= LEVELS), other=-1)
        there = task >= 0
        field = tasks + task * TASK_FIELDS
        member = tl.load(positions + request) - tl.load(field + 3, mask=there, other=0)
        place = tl.where(there, own_places + tl.load(field + 5, mask=there, other=0) + member, place)
        step = tl.where(there, tl.load(field + 4, mask=there, other=0), step)
        count = tl.where(there, tl.load(field + 7, mask=there, other=0), count)
    # One part alone was written as the output.
    count = tl.where((rank < 0) | (tl.sum(count, 0) == 1), 0, count)
    count = tl.where(tl.load(lengths + request) == 0, tl.where(level == 0, -1, 0), count)
    at = parts + request * 3 * BLOCK_LEVELS + level
    tl.store(at, place)
    tl.store(at + BLOCK_LEVELS, step)
    tl.store(at + 2 * BLOCK_LEVELS, tl.cumsum(count, 0))


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
    left_over: bool = False
    """Whether the last tiles are left to whoever is done first (tiles.py): by decode_hopper.py."""

    @staticmethod
    def of(token_bytes: int, shared: int, *, together: bool = False) -> "DecodeConfig":
        """What was measured to be fastest (docs/performance.md): one program a multiprocessor, or two smaller ones, of
        which the second reads what requests share.

        Args:
            token_bytes: of K and V of one token and KV head, each padded to a power of two.
            shared: bytes of shared memory for tiles.
            together: whether the kernel reads shared tasks too.
        """
        room = shared // (2 if together else 1) // token_bytes  # tokens
        tile = 64 if together else 128
        while tile > 32 and 2 * tile > room:
            tile //= 2
        # The loads of all stages but one are on their way.
        stages = max(2, min(3, room // tile + 1))
        return DecodeConfig(tile, 4, stages, 1, stages)


def token_bytes(head_dim: int, v_head_dim: int, itemsize: int) -> int:
    """What K and V of one token and KV head take in shared memory: each head padded to a power of two."""
    return int((triton.next_power_of_2(head_dim) + triton.next_power_of_2(v_head_dim)) * itemsize)


def shared_tile(head_dim: int, v_head_dim: int, itemsize: int, device: torch.device | str) -> int:
    """Tokens of a tile where the decode kernel itself reads shared tasks."""
    return DecodeConfig.of(token_bytes(head_dim, v_head_dim, itemsize), shared_bytes(device), together=True).tile


def most_group(device: torch.device | str) -> int | None:
    """Query heads of a KV head that the decode kernel takes at most; None: any number. On Hopper 32, since Triton 3.6
    makes products of warp groups of more rows, which in its loop are not known to be right (`MOST_COLUMNS` in
    decode.py), and which need more shared memory than there is with heads of 128."""
    return 32 if on_hopper(device) else None


class SharedTasks:
    """What the requests of a batch read together, as the core plans it (`SharePlan` of vt_sglang/_core.pyi).

    A task is a stretch of tokens that its members, requests beside each other in the order, share; any one's slot holds
    it. A request's tasks follow each other from its first token on, and none is shorter than a tile.

    Args:
        max_batch: most requests of a batch.
        max_tasks: most tasks.
        max_levels: most tasks of one request.
        max_places: most partial results: the sum, over tasks, of members times workers that have a tile of it.
        members: most requests of a task.
        workers: for each KV head.
        tile: tokens of a tile.

    Raises:
        ValueError: a size is less than 1.
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
        tile: int,
        device: torch.device | str,
    ) -> None:
        sizes = {"max_batch": max_batch, "max_tasks": max_tasks, "max_levels": max_levels, "max_places": max_places}
        for name, number in (sizes | {"members": members, "workers": workers, "tile": tile}).items():
            at_least(name, number, 1)
        self.max_batch, self.max_levels, self.max_places = max_batch, max_levels, max_places
        self.members, self.workers, self.tile = members, workers, tile
        rows = max_batch * max_levels
        self.sizes = (HEADER, max_tasks * TASK_FIELDS, max_batch, max_batch, max_batch, rows, workers * 4)
        """int32 of a plan's parts: header, tasks, order, positions, own starts, tasks by row, runs by worker."""
        self.words = torch.zeros(sum(self.sizes), dtype=torch.int32, device=device)
        """The plan."""
        self.header, tasks, self.order, self.positions, self.ends, row_tasks, runs = self.words.split(self.sizes)
        self.tasks, self.row_tasks = tasks.view(max_tasks, TASK_FIELDS), row_tasks.view(max_batch, max_levels)
        self.runs = runs.view(workers, 4)
        # Nobody shares anything, and no worker has a task.
        self.row_tasks.fill_(-1)
        self.runs[:, 1] = -1


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

    Raises:
        TypeError: the window is no whole number.
        ValueError: no kernel can take such heads, or so many of a KV head; tiles are not a power of two; the tasks'
            tiles are not the decode kernel's, which is to read them; or what is shared is for smaller batches, or
            beside a window.
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
        self.heads = Heads.of(
            kv_heads=kv_heads,
            group=group,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            itemsize=itemsize,
            device=device,
        )
        at_least("max_batch", max_batch, 1)
        at_least("multiprocessors", multiprocessors, 1)
        if shared is not None and window >= 0:
            raise ValueError(f"shared tasks read all tokens, and window is {window}: it should be negative")
        if shared is not None and shared.max_batch < max_batch:
            raise ValueError(f"shared is for batches of {shared.max_batch}, and should be for max_batch, {max_batch}")
        self.hopper = config is not None and config.left_over
        """Whether decode_hopper.py reads what requests read by themselves, and shared_hopper.py what they share."""
        most = MOST_ON_HOPPER if self.hopper else most_group(device)
        if most is not None and group > most:
            raise ValueError(f"group is {group}, and should be at most {most} on this GPU")
        self.window, self.group = operator.index(window), group
        self.shared = shared
        self.batch = 0
        """Requests of the batch that was cut last."""
        gpu = self.heads.device
        self.dependent_launch = dependent_launch(gpu)
        """Whether its kernels are set up while the one before still runs."""
        together = shared is not None and not self.hopper
        self.config = config or DecodeConfig.of(
            token_bytes(head_dim, v_head_dim, itemsize), shared_bytes(device), together=together
        )
        """How the kernel is launched."""
        if (tile := self.config.tile) < 16 or tile & (tile - 1):
            raise ValueError(f"config has tiles of {tile} tokens, and should have a power of two, 16 at least")
        if shared is not None and together and shared.tile != self.config.tile:
            raise ValueError(
                f"the tasks have tiles of {shared.tile} tokens, and the decode kernel reads {self.config.tile} at once"
            )
        self.workers = max(1, multiprocessors * self.config.programs_per_multiprocessor // kv_heads)
        """Among how many the tiles of all requests are dealt, for each KV head."""

        def words(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.ranks, self.ends, self.short_requests = words(max_batch), words(max_batch), words(max_batch)
        self.shorts, self.requests = words(1), words(max_batch, RUN_FIELDS)
        most_runs = self.workers * (1 + ROUNDS.value if self.hopper else 1)
        self.runs, self.runs_left, self.runs_taken = words(most_runs, 4), words(1), words(1)
        """Runs of tiles for each KV head: each worker's own, and those that whoever is done takes; how many these are;
        and of all heads' together, how many were taken. The merge counts anew."""
        self.spare_programs = max(0, multiprocessors - self.workers * kv_heads)
        """Multiprocessors without a run of their own."""
        self.rank_ends = words(max_batch + 1)
        self.begun = words(1)
        """A flag by which a layer's decode kernel tells the one beside it that the queries are there (launches.py)."""
        levels = 1 + (shared.max_levels if shared else 0)
        self.parts = words(max_batch, 3, triton.next_power_of_2(levels))
        # A step from one part to the next along the tiles is one to the next request, the next run, or both.
        self.own_places = max_batch + most_runs
        """Partial results of requests; those of shared tasks come behind."""
        places = (self.own_places + (shared.max_places if shared else 0), kv_heads * group)
        self.partial = torch.empty((*places, v_head_dim), dtype=torch.float32, device=device)
        self.partial_lse = torch.empty(places, dtype=torch.float32, device=device)

    def shared_by(self, batch: int) -> SharedTasks | None:
        """What a batch of so many requests may read together: nothing where there is one."""
        return self.shared if batch > 1 else None

    def parts_of_one(self, batch: int) -> int:
        """About the most partial results that a request of such a batch has of its own tokens, if all are as long."""
        parts = self.workers // batch + 1
        if self.hopper:
            # The requests whose tiles are left over have parts of all these runs.
            parts += ROUNDS.value * self.workers * LEFT_ONE_IN.value // batch
        return min(parts, len(self.runs))

    def update(self, slots: torch.Tensor, lengths: torch.Tensor) -> None:
        """Cut the work anew.

        Args:
            slots: [batch] int32 or int64, on the device.
            lengths: [batch] int32 or int64, each request's tokens, on the device; 0: nothing to do.

        Raises:
            ValueError: the batch is larger than the plan was made for, or empty; or an argument has another shape,
                dtype, layout or device.
            TypeError: one is no tensor.
        """
        check_vector("lengths", lengths, 1, INDICES, self.heads.device, more=True)
        batch = lengths.shape[0]
        check_vector("slots", slots, batch, INDICES, self.heads.device)
        if batch > self.ranks.shape[0]:
            raise ValueError(f"{batch} requests in a plan made for {self.ranks.shape[0]}")
        self.batch = batch
        shared = self.shared_by(batch)
        plan_kernel[(len(self.runs),)](
            slots,
            lengths,
            shared and shared.ends,
            self.ranks,
            self.ends,
            self.requests,
            self.rank_ends,
            self.short_requests,
            self.shorts,
            self.runs,
            self.runs_left,
            self.runs_taken,
            batch,
            self.workers,
            RUN_FIELDS=RUN_FIELDS,
            TILE=self.config.tile,
            WINDOW=self.window,
            BLOCK_BATCH=triton.next_power_of_2(batch),
            LEFT_OVER=self.hopper,
        )
        parts_kernel[(batch,)](
            lengths,
            self.ranks,
            self.ends,
            shared and shared.tasks,
            shared and shared.positions,
            shared and shared.row_tasks,
            self.parts,
            self.workers,
            self.own_places,
            TASK_FIELDS=TASK_FIELDS,
            LEVELS=shared.max_levels if shared else 0,
            BLOCK_LEVELS=self.parts.shape[2],
            LEFT_OVER=self.hopper,
            num_warps=1,
        )
