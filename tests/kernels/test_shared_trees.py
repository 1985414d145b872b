# SPDX-License-Identifier: Apache-2.0
"""Tree-aware decode of random trees step by step, as a server runs it: what a step launches is fixed, on a GPU in a
CUDA graph that is replayed, and only the plan's and the batch's buffers are written anew while requests join, leave and
grow.

Against float64 and against plain decode; with NaN past every length, in all partial results and in the output before
each step, and with garbage in the plan where no task is. Without a GPU in Triton's interpreter; on Hopper with the
kernel in Gluon as well, which has no interpreter."""

import random

import pytest
import torch
from arena import CUDA, DEVICE, Arena, assert_close
from reference import attend
from share import Segment, random_tree, words
from vt_sglang.triton_kernels import decode_hopper, shared_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import HEADER, SHARED_ROWS, TASK_FIELDS, DecodePlan, SharedTasks, shared_tile

HOPPER = CUDA and torch.cuda.get_device_capability()[0] == 9
HEAD_DIM = 128 if CUDA else 64
DTYPE = torch.bfloat16 if CUDA else torch.float16
LEVELS = 4
BATCH = 40 if CUDA else 7
TREES, STEPS = (3, 4) if CUDA else (1, 3)
LAYERS = 2 if CUDA else 1

# Ends before, at and behind borders of pages (16 tokens here) and of tiles of 64 and 128 tokens.
STRETCHES = [128, 129, 130, 191, 192, 200, 255, 256, 300]
OWNS = [1, 2, 63, 64, 65, 127, 128, 129, 300]


class Server:
    """Buffers of fixed places, and the launches of a step over them."""

    def __init__(self, *, hopper: bool, kv_heads: int, group: int, workers: int) -> None:
        self.kv_heads, self.group = kv_heads, group
        members = SHARED_ROWS // group
        sizes = {
            "max_batch": BATCH,
            "kv_heads": kv_heads,
            "group": group,
            "head_dim": HEAD_DIM,
            "v_head_dim": HEAD_DIM,
            "itemsize": 2,
            "multiprocessors": workers * kv_heads,
            "device": DEVICE,
        }
        self.shared = SharedTasks(
            max_batch=BATCH,
            max_tasks=4 * BATCH,
            max_levels=LEVELS,
            max_places=LEVELS * BATCH + workers * members,
            members=members,
            workers=workers,
            tile=shared_hopper.TILE if hopper else shared_tile(HEAD_DIM, HEAD_DIM, 2, DEVICE),
            device=DEVICE,
        )
        config = decode_hopper.CONFIG if hopper else None
        self.plan = DecodePlan(**sizes, shared=self.shared, config=config)
        self.plain = DecodePlan(**sizes, config=config)
        tokens = 1 + LEVELS * max(STRETCHES) + max(OWNS) + STEPS
        self.slots = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
        self.lengths = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
        self.arena = Arena(
            [0] * BATCH,
            kv_heads=kv_heads,
            head_dim=HEAD_DIM,
            v_head_dim=HEAD_DIM,
            dtype=DTYPE,
            slot_tokens=tokens,
            generator=torch.Generator().manual_seed(workers),
        )
        self.q = torch.zeros(BATCH, kv_heads * group, HEAD_DIM, dtype=DTYPE, device=DEVICE)
        self.out = torch.zeros_like(self.q)
        self._graph = None
        if CUDA:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                self._launch(self.plan, self.out)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._launch(self.plan, self.out)

    def _launch(self, plan: DecodePlan, out: torch.Tensor) -> None:
        plan.update(self.slots, self.lengths)
        for _ in range(LAYERS):
            decode_attention(
                self.q, self.arena.k, self.arena.v, out, self.slots, self.lengths, plan, scaling=HEAD_DIM**-0.5
            )

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the step writes, and what plain decode does."""
        for poisoned in (self.out, self.plan.partial, self.plan.partial_lse):
            poisoned.fill_(float("nan"))
        if self._graph is None:
            self._launch(self.plan, self.out)
        else:
            self._graph.replay()
        plain = torch.full_like(self.out, float("nan"))
        self._launch(self.plain, plain)
        return self.out, plain


class Tree:
    """Requests in the slots of a server's arena, in the order of a random tree."""

    def __init__(self, server: Server, draw: random.Random) -> None:
        self.server = server
        self.segments, self.lengths = random_tree(draw, BATCH, levels=LEVELS, stretches=STRETCHES, owns=OWNS)
        self.slots = draw.sample(range(BATCH + 2), BATCH)
        for cache in (server.arena.k, server.arena.v):
            cache.fill_(float("nan"))
            for slot, length in zip(self.slots, self.lengths, strict=True):
                cache[slot, :length] = self._random(length)
            for it in self.segments:
                for row in it.rows[1:]:
                    cache[self.slots[row], it.start : it.stop] = cache[self.slots[it.rows[0]], it.start : it.stop]

    def _random(self, *rows: int) -> torch.Tensor:
        server = self.server
        return torch.randn(*rows, server.kv_heads, HEAD_DIM).to(DTYPE).to(DEVICE)

    def grow(self) -> None:
        """A token more of each request."""
        for cache in (self.server.arena.k, self.server.arena.v):
            for slot, length in zip(self.slots, self.lengths, strict=True):
                cache[slot, length] = self._random()
        self.lengths = [length + 1 for length in self.lengths]

    def check(self, draw: random.Random) -> None:
        """A step of some of the requests, in any order."""
        server, shared = self.server, self.server.shared
        present = sorted(draw.sample(range(BATCH), draw.randint(1, BATCH)))  # in the tree's order
        rows = draw.sample(range(len(present)), len(present))  # of the batch
        row_of = dict(zip(present, rows, strict=True))
        slots, lengths = [0] * len(present), [0] * len(present)
        for request, row in row_of.items():
            slots[row], lengths[row] = self.slots[request], self.lengths[request]
        segments = [
            Segment(it.start, it.stop, its)
            for it in self.segments
            if len(its := tuple(row_of[request] for request in it.rows if request in row_of)) > 1
        ]
        plan = words(shared, segments, slots, rows)
        plan[HEADER + int(plan[0]) * TASK_FIELDS : HEADER + shared.tasks.numel()] = 2**30  # no task: no one may look
        shared.words.copy_(plan)
        server.slots.fill_(BATCH + 1)
        server.lengths.fill_(0)
        server.slots[: len(slots)] = torch.tensor(slots, device=DEVICE)
        server.lengths[: len(slots)] = torch.tensor(lengths, device=DEVICE)
        server.q.copy_(torch.randn(server.q.shape).to(DTYPE))
        out, plain = server.step()
        for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            keys, values = (it[slot, :length].cpu() for it in (server.arena.k, server.arena.v))
            expected = attend(server.q[row : row + 1].cpu(), keys, values, scaling=HEAD_DIM**-0.5)[0]
            what = f"row {row} of {length} tokens; {segments}"
            assert_close(out[row], expected, DTYPE, what)
            assert_close(out[row], plain[row].cpu().double(), DTYPE, f"beside plain decode: {what}")
        assert not out[len(slots) :].any(), "rows that pad the batch"


@pytest.mark.parametrize("hopper", [pytest.param(True, marks=pytest.mark.skipif(not HOPPER, reason="Hopper")), False])
@pytest.mark.parametrize(
    ("kv_heads", "group", "workers"), [(2, 4, 1), (2, 4, 16), (1, 8, 40), (4, 1, 7)] if CUDA else [(1, 4, 3)]
)
def test_steps_over_random_trees(hopper: bool, kv_heads: int, group: int, workers: int) -> None:
    """One set of buffers, and one graph, for all trees and batches."""
    seed = 100 * workers + 10 * group + hopper
    draw = random.Random(seed)
    torch.manual_seed(seed)
    server = Server(hopper=hopper, kv_heads=kv_heads, group=group, workers=workers)
    for _ in range(TREES):
        tree = Tree(server, draw)
        for _ in range(STEPS):
            tree.check(draw)
            tree.grow()
