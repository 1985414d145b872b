# SPDX-License-Identifier: Apache-2.0
"""Time of the host's plan for tree-aware decode, in microseconds, the call from Python included.

    python bench/share_plan.py [--json report/share_plan.json]

Before each call a request leaves the batch and another takes its place, so that the plan is made anew: "warm" at once,
"cold" after the processor's caches were filled with other data, as between two steps of a server. "unchanged" is the
call for a batch that goes on as it is; when cold, it is what a call takes that does nothing. The floor is a copy of the
plan's buffer in memory, called from Python too.
"""

import argparse
import random
import statistics
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import write_json
from rich.console import Console
from rich.table import Table
from vt_sglang.triton_kernels import shared_hopper
from vt_sglang.triton_kernels.decode_plan import SHARED_READ, SHARED_ROWS

from vt_sglang._core import KVCache, SharePlan
from vt_sglang.adapter.sharing import LEAST_SAVED, MAX_LEVELS

REPEATS = 300
# Of a Llama-3-8B on a GPU with 132 multiprocessors.
GROUP, KV_HEADS = 4, 8
TILE, WORKERS, MEMBERS_PER_TASK = shared_hopper.TILE, 132 // KV_HEADS, SHARED_ROWS // GROUP
MORE_THAN_CACHES = np.zeros(64 * 2**20, dtype=np.uint8)

Turns = list["array[int]"]


class Batch:
    """A batch whose requests have each recorded their turns, one after the other."""

    def __init__(self, requests: list[Turns]) -> None:
        self.cache = KVCache(
            driver="none",
            page_bytes=4096,
            token_bytes=256,
            slots=len(requests) + 2,
            slot_tokens=max(sum(map(len, turns)) for turns in requests) + 1,
            budget_pages=2**20,
        )
        self.requests = requests
        self.slots = np.array([self._start(turns) for turns in requests])
        self.plan = SharePlan(
            self.cache,
            max_batch=len(requests),
            max_workers=WORKERS,
            members_per_task=MEMBERS_PER_TASK,
            members_per_read=SHARED_READ * MEMBERS_PER_TASK,
            max_levels=MAX_LEVELS,
            least_saved=LEAST_SAVED,
        )
        self.buffer = np.zeros(self.plan.size, dtype=np.int32)
        self._next = 0

    def _start(self, turns: Turns) -> int:
        tokens: array[int] = array("q")
        slot = 0
        for turn in turns:
            if slot:
                self.cache.release(slot)
            tokens = tokens + turn
            node = self.cache.match(None, tokens)[0]
            self.cache.lock(node)
            slot = self.cache.bind(None, node, len(tokens) + 1)[0]
            self.cache.record(slot, tokens, len(tokens))
            self.cache.unlock(node)
        return slot

    def replace_one(self) -> None:
        """A request leaves and its conversation comes back."""
        self._next = (self._next + 1) % len(self.requests)
        self.cache.release(int(self.slots[self._next]))
        self.slots[self._next] = self._start([array("q", [t for turn in self.requests[self._next] for t in turn])])

    def update(self) -> bool:
        """The call that is measured."""
        return self.plan.update(self.slots, self.buffer, TILE, WORKERS)


def _tokens(source: random.Random, count: int) -> "array[int]":
    return array("q", (source.randrange(128_000) for _ in range(count)))


def _conversations(source: random.Random, count: int, turns: int, system: int, fork_every: int) -> list[Turns]:
    """Conversations on one system prompt; some are forks of the one before, that part from it in a random turn."""
    prompt = _tokens(source, system)
    requests: list[Turns] = []
    for i in range(count):
        own = [_tokens(source, 200) for _ in range(turns)]
        if fork_every and i % fork_every:
            kept = source.randrange(1, turns + 1)
            requests.append([*requests[-1][:kept], *own[kept - 1 :]])
        else:
            requests.append([prompt, *own])
    return requests


def _forks_of_a_trunk(source: random.Random, count: int, step: int) -> list[Turns]:
    """As deep as a tree of so many requests can be: each parts from one trunk a step later than the one before."""
    trunk = _tokens(source, count * step)
    return [[trunk[: i * step], _tokens(source, 8)] for i in range(1, count + 1)]


def _shapes() -> list[tuple[str, list[Turns]]]:
    source = random.Random(1)
    groups = [_tokens(source, 8192), *(_tokens(source, 4096) for _ in range(8))]
    return [
        ("256 requests, nothing shared", [[_tokens(source, 500)] for _ in range(256)]),
        ("256 on a system prompt", _conversations(source, 256, 1, 2048, 0)),
        ("8 groups of 16, two levels", [[groups[0], groups[1 + i // 16], _tokens(source, 64)] for i in range(128)]),
        ("256 of 20 turns on a system prompt", _conversations(source, 256, 20, 2048, 0)),
        ("256 of 20 turns, 3 in 4 forked", _conversations(source, 256, 20, 2048, 4)),
        ("256 forks of a trunk, 1 token apart", _forks_of_a_trunk(source, 256, 1)),
        ("256 forks of a trunk, 50 tokens apart", _forks_of_a_trunk(source, 256, 50)),
    ]


def _times(run: Callable[[], bool], prepare: Callable[[], object] | None, changes: bool) -> tuple[float, float]:
    """(best, median) of a call, in microseconds."""
    times = []
    for _ in range(REPEATS):
        if prepare is not None:
            prepare()
        start = time.perf_counter_ns()
        changed = run()
        times.append((time.perf_counter_ns() - start) / 1e3)
        assert changed == changes
    return min(times), statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    table = Table("batch", "tasks", "levels", "saved", "warm us", "cold us", "unchanged us", "cold", "floor us", "cold")
    for name, requests in _shapes():
        batch = Batch(requests)
        batch.update()
        copy = batch.buffer.copy()

        def fill_caches() -> None:
            MORE_THAN_CACHES.__iadd__(1)

        def make_cold(batch: Batch = batch) -> None:
            batch.replace_one()
            fill_caches()

        def copy_buffer(copy: np.ndarray = copy, batch: Batch = batch) -> bool:
            np.copyto(copy, batch.buffer)
            return False

        row: dict[str, Any] = {"batch": name}
        facts = batch.plan.facts()
        row |= {"tasks": facts["tasks"], "levels": int(batch.buffer[5]), "tokens_saved": facts["tokens_saved"]}
        row["tokens_visible"] = sum(sum(map(len, turns)) for turns in requests)
        for what, prepare, run, changes in (
            ("warm", batch.replace_one, batch.update, True),
            ("cold", make_cold, batch.update, True),
            ("unchanged", None, batch.update, False),
            ("unchanged_cold", fill_caches, batch.update, False),
            ("floor", None, copy_buffer, False),
            ("floor_cold", fill_caches, copy_buffer, False),
        ):
            row[f"{what}_best_us"], row[f"{what}_us"] = _times(run, prepare, changes)
        rows.append(row)
        table.add_row(
            name,
            str(row["tasks"]),
            str(row["levels"]),
            f"{row['tokens_saved'] / row['tokens_visible']:.0%}",
            *(f"{row[f'{what}_us']:.1f} ({row[f'{what}_best_us']:.1f})" for what in ("warm", "cold")),
            *(f"{row[f'{what}_us']:.1f}" for what in ("unchanged", "unchanged_cold", "floor", "floor_cold")),
        )
    Console(width=130).print(table, "Medians, the best in brackets.")
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
