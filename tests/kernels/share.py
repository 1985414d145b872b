# SPDX-License-Identifier: Apache-2.0
"""Plans of shared tasks, spelled out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vt_sglang.triton_kernels.decode_plan import TASK_FIELDS, SharedTasks


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) that these requests, rows of the batch, share."""

    start: int
    stop: int
    rows: tuple[int, ...]


def random_tree(
    draw: random.Random, batch: int, *, levels: int, stretches: Sequence[int], owns: Sequence[int]
) -> tuple[list[Segment], list[int]]:
    """Segments, and the lengths of the batch's requests, which stand in the tree's order: groups of any size within
    groups, and a ragged own part for each request.

    Args:
        levels: most segments of a request.
        stretches, owns: tokens that a segment, and an own part, may have.
    """
    segments: list[Segment] = []
    lengths = [0] * batch

    def divide(rows: list[int], start: int, level: int) -> None:
        if len(rows) > 1 and level < levels and draw.random() < 0.85:
            stop = start + draw.choice(stretches)
            segments.append(Segment(start, stop, tuple(rows)))
            cut = draw.randint(1, len(rows))
            divide(rows[:cut], stop, level + 1)
            divide(rows[cut:], stop, level + 1)
            return
        for row in rows:
            lengths[row] = start + draw.choice(owns)

    divide(list(range(batch)), 0, 0)
    return segments, lengths


def words(
    shared: SharedTasks,
    segments: Sequence[Segment],
    slots: Sequence[int],
    order: Sequence[int],
) -> torch.Tensor:
    """The plan as `SharedTasks.words` has it.

    Args:
        segments: those of a request from its first token on.
        order: the batch's rows, so that each segment's follow each other.
    """
    tasks, levels = [], {row: [] for row in order}
    ends = dict.fromkeys(order, 0)
    for segment in segments:
        first = min(map(order.index, segment.rows))
        assert sorted(order[first : first + len(segment.rows)]) == sorted(segment.rows)
        for at in range(first, first + len(segment.rows), shared.members):
            rows = order[at : min(at + shared.members, first + len(segment.rows))]
            for row in rows:
                assert ends[row] == segment.start
                ends[row] = segment.stop
                levels[row].append(len(tasks))
            tasks.append([slots[segment.rows[0]], segment.start, segment.stop, at, len(rows)])
    total = sum(-(-(task[2] - task[1]) // shared.tile) for task in tasks)
    used = min(total, shared.workers)
    end = place = 0
    for task in tasks:
        begin, end = end, end + -(-(task[2] - task[1]) // shared.tile)
        spans = _worker(end - 1, total, used) - _worker(begin, total, used) + 1
        task += [place, end, spans]
        place += task[4] * spans
    assert place <= shared.max_places
    plan = torch.zeros(sum(shared.sizes), dtype=torch.int32)
    header, out_tasks, out_order, positions, own_starts, row_tasks, runs = plan.split(shared.sizes)
    header[:2] = torch.tensor([len(tasks), total])
    for index, task in enumerate(tasks):
        out_tasks.view(-1, TASK_FIELDS)[index] = torch.tensor(task)
    row_tasks.fill_(-1)
    for position, row in enumerate(order):
        out_order[position], positions[row], own_starts[row] = row, position, ends[row]
        for level, task in enumerate(levels[row]):
            row_tasks.view(-1, shared.max_levels)[row, level] = task
    line = [index for index, task in enumerate(tasks) for _ in range(-(-(task[2] - task[1]) // shared.tile))]
    for worker in range(shared.workers):
        first, behind = worker * total // max(used, 1), (worker + 1) * total // max(used, 1)
        run = [line[first], line[behind - 1], first, behind] if worker < used else [0, -1, 0, 0]
        runs.view(-1, 4)[worker] = torch.tensor(run)
    return plan


def _worker(tile: int, total: int, used: int) -> int:
    return ((tile + 1) * used - 1) // total
