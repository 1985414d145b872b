# SPDX-License-Identifier: Apache-2.0
"""Plans of tree-aware decode as tests read them, what must hold of each, and the cheapest one by plain recursion."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from core_harness import ints

from vt_sglang._core import KVCache, SharePlan

PADDING = 0  # the slot


class Task(NamedTuple):
    slot: int
    start: int
    end: int
    first: int
    count: int
    first_place: int
    tile_end: int
    spans: int


class Planner:
    """A plan with its buffer, which starts out as garbage."""

    def __init__(
        self,
        cache: KVCache,
        *,
        max_batch: int = 8,
        max_workers: int = 5,
        members_per_task: int = 4,
        members_per_read: int = 0,
        max_levels: int = 8,
        least_saved: int = 1,
        max_places: int = 0,
    ) -> None:
        self.max_batch, self.max_workers, self.max_levels = max_batch, max_workers, max_levels
        self.members_per_task, self.least_saved = members_per_task, least_saved
        self.members_per_read = members_per_read or members_per_task
        self.plan = SharePlan(
            cache,
            max_batch=max_batch,
            max_workers=max_workers,
            members_per_task=members_per_task,
            members_per_read=members_per_read,
            max_levels=max_levels,
            least_saved=least_saved,
            max_places=max_places,
        )
        self.buffer = np.full(self.plan.size, -7, dtype=np.int32)
        self.slots: list[int] = []

    def update(self, slots: Sequence[int], tile: int = 4, workers: int = 5) -> bool:
        self.slots, self.tile, self.workers = list(slots), tile, workers
        return self.plan.update(ints(*slots), self.buffer, tile, workers)

    def part(self, start: int, *shape: int) -> np.ndarray:
        return self.buffer[start : start + int(np.prod(shape))].reshape(shape)

    @property
    def tasks(self) -> list[Task]:
        """Those that are there."""
        rows = self.part(self.plan.tasks_at, self.plan.max_tasks, 8)
        return [Task(*map(int, row)) for row in rows[: self.buffer[0]]]

    def written(self) -> np.ndarray:
        """The buffer, without what stands where tasks would that the plan lacks."""
        buffer = self.buffer.copy()
        first = self.plan.tasks_at
        buffer[first + 8 * buffer[0] : first + 8 * self.plan.max_tasks] = 0
        return buffer

    @property
    def order(self) -> list[int]:
        return self.part(self.plan.order_at, self.max_batch).tolist()

    @property
    def own_starts(self) -> list[int]:
        """Of the batch's rows."""
        return self.part(self.plan.own_starts_at, self.max_batch).tolist()[: len(self.slots)]

    @property
    def levels(self) -> list[list[int]]:
        """Tasks of the batch's rows, without the -1 after them."""
        rows = self.part(self.plan.row_tasks_at, self.max_batch, self.max_levels).tolist()
        return [[task for task in row if task >= 0] for row in rows[: len(self.slots)]]

    def members(self, task: Task) -> list[int]:
        """Rows."""
        return self.order[task.first : task.first + task.count]

    def shared(self) -> list[tuple[int, int, set[int]]]:
        """(start, end, slots that read it together) of each task, in no particular order."""
        return sorted((it.start, it.end, {self.slots[row] for row in self.members(it)}) for it in self.tasks)

    def cost(self, lengths: Sequence[int]) -> int:
        """What the plan minimises, for rows of these lengths."""
        own = sum(length - start for length, start in zip(lengths, self.own_starts, strict=True))
        stretches: dict[tuple[int, int, int], int] = defaultdict(int)
        for it in self.tasks:
            stretches[it.slot, it.start, it.end] += it.count
        return own + sum(
            -(-rows // self.members_per_read) * (end - start) + self.least_saved * rows
            for (_, start, end), rows in stretches.items()
        )

    def verify(self, prefixes: Sequence[Sequence[int]]) -> None:
        """Everything that must hold, given what tells apart the tokens of each row and all before them
        (`prefix_hashes`), as far as the row may share them."""
        self._verify_rows(prefixes)
        self._verify_tasks(prefixes)
        self._verify_line()

    def _verify_rows(self, prefixes: Sequence[Sequence[int]]) -> None:
        positions = self.part(self.plan.positions_at, self.max_batch).tolist()
        assert sorted(self.order) == list(range(self.max_batch))
        assert [positions[row] for row in self.order] == list(range(self.max_batch))
        assert set(self.order[: len(self.slots)]) == set(range(len(self.slots)))
        unused = self.part(self.plan.row_tasks_at, self.max_batch, self.max_levels)[len(self.slots) :]
        assert (unused == -1).all()
        assert not self.part(self.plan.own_starts_at, self.max_batch)[len(self.slots) :].any()
        for row, (slot, levels, own_start) in enumerate(zip(self.slots, self.levels, self.own_starts, strict=True)):
            assert own_start <= len(prefixes[row])
            assert slot != PADDING or not levels
            borders = [0, *(self.tasks[it].end for it in levels)]
            assert [self.tasks[it].start for it in levels] == borders[:-1], "a row's tasks leave a gap or overlap"
            assert borders[-1] == own_start
            assert all(row in self.members(self.tasks[it]) for it in levels)

    def _verify_tasks(self, prefixes: Sequence[Sequence[int]]) -> None:
        tasks, of_slot = self.tasks, dict(zip(self.slots, prefixes, strict=True))
        assert len(tasks) <= self.plan.max_tasks
        for number, task in enumerate(tasks):
            members = self.members(task)
            assert 1 <= task.count <= self.members_per_task
            assert 0 <= task.start < task.end
            assert all(number in self.levels[row] for row in members)
            assert {prefixes[row][task.end - 1] for row in members} == {of_slot[task.slot][task.end - 1]}
        segments = defaultdict(list)
        for task in tasks:
            segments[task.slot, task.start, task.end].append(task.count)
        for counts in segments.values():
            assert sum(counts) > 1, "a task for one"
            assert len(counts) == -(-sum(counts) // self.members_per_task)
            assert max(counts) - min(counts) <= 1
        facts = self.plan.facts()
        assert facts["tokens_read"] == sum(it.end - it.start for it in tasks)
        assert facts["tokens_saved"] == sum(self.own_starts) - facts["tokens_read"]

    def _verify_line(self) -> None:
        """Tiles are dealt as triton_kernels/tiles.py deals them, and every partial result has a place of its own."""
        tasks, facts = self.tasks, self.plan.facts()
        counts = [-(-(it.end - it.start) // self.tile) for it in tasks]
        line = [number for number, count in enumerate(counts) for _ in range(count)]
        used = min(len(line), self.workers)
        assert [it.tile_end for it in tasks] == list(np.cumsum(counts, dtype=int))
        writers: dict[int, list[int]] = defaultdict(list)
        starts = [worker * len(line) // used for worker in range(used)] + [len(line)]
        for worker, (start, end) in enumerate(pairwise(starts)):
            assert start < end
            for task in sorted(set(line[start:end])):
                writers[task].append(worker)
        runs = [[line[start], line[end - 1], start, end] for start, end in pairwise(starts)]
        runs += [[0, -1, 0, 0]] * (self.max_workers - used)
        assert self.part(self.plan.runs_at, self.max_workers, 4).tolist() == runs
        place = 0
        for number, task in enumerate(tasks):
            assert task.spans == len(writers[number])
            assert task.first_place == place
            place += task.spans * task.count
        assert place == facts["places"] <= self.plan.max_places
        most = max(map(len, self.levels), default=0)
        assert most <= self.max_levels
        assert self.buffer[:8].tolist() == [len(tasks), len(line), used, place, len(self.slots), most, self.tile, 0]
        assert (facts["tasks"], facts["tiles"]) == (len(tasks), len(line))


def cheapest(prefixes: Sequence[Sequence[int]], least_saved: int, members_per_read: int) -> int:
    """The least that tokens read and `least_saved` for each row and task can come to: every segment is grouped or not,
    and all ways are tried."""

    def cost(rows: list[int], start: int) -> int:
        if len(rows) == 1:
            return len(prefixes[rows[0]]) - start
        least = min(len(prefixes[row]) for row in rows)
        end = next((i for i in range(start, least) if len({prefixes[row][i] for row in rows}) > 1), least)
        groups: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            groups[prefixes[row][end] if end < len(prefixes[row]) else -1 - row].append(row)
        apart = sum(cost(group, start) for group in groups.values())
        if end == start:
            return apart
        reads = -(-len(rows) // members_per_read)
        together = reads * (end - start) + least_saved * len(rows) + sum(cost(group, end) for group in groups.values())
        return min(apart, together)

    return cost(list(range(len(prefixes))), 0) if prefixes else 0
