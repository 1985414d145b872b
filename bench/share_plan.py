# SPDX-License-Identifier: Apache-2.0
"""Plans of shared tasks, spelled out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vt_sglang.triton_kernels.tiles import TASK_FIELDS, SharedTasks


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) that these requests, rows of the batch, share."""

    start: int
    stop: int
    rows: tuple[int, ...]


def plan_words(
    shared: SharedTasks,
    segments: Sequence[Segment],
    slots: Sequence[int],
    order: Sequence[int],
    *,
    tile: int,
) -> torch.Tensor:
    """The plan as `SharedTasks.copy` takes it.

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
            # Any member's slot will do.
            tasks.append([slots[rows[len(tasks) % len(rows)]], segment.start, segment.stop, at, len(rows)])
    total = sum(-(-(task[2] - task[1]) // tile) for task in tasks)
    used = min(total, shared.workers)
    end = place = 0
    for task in tasks:
        begin, end = end, end + -(-(task[2] - task[1]) // tile)
        task += [place, end, 0]
        place += task[4] * (_worker(end - 1, total, used) - _worker(begin, total, used) + 1)
    assert place <= shared.partial.shape[0]
    count, tiles, out_tasks, out_order, out_places, out_ends, out_levels = torch.zeros(
        shared.host_words, dtype=torch.int32
    ).split(shared.sizes)
    count[0], tiles[0] = len(tasks), total
    for index, task in enumerate(tasks):
        out_tasks.view(-1, TASK_FIELDS)[index] = torch.tensor(task)
    out_levels.fill_(-1)
    for place, row in enumerate(order):
        out_order[place], out_places[row], out_ends[row] = row, place, ends[row]
        for level, task in enumerate(levels[row]):
            out_levels.view(-1, shared.levels.shape[1])[row, level] = task
    return torch.cat([count, tiles, out_tasks, out_order, out_places, out_ends, out_levels])


def _worker(tile: int, total: int, used: int) -> int:
    return ((tile + 1) * used - 1) // total
