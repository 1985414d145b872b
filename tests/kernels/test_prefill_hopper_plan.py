# SPDX-License-Identifier: Apache-2.0
"""How prefill on Hopper is dealt out, and the merge of what is divided: both without a GPU too."""

import itertools
import random

import numpy as np
import pytest
import torch
from arena import DEVICE, assert_close
from vt_sglang.triton_kernels.prefill_hopper_plan import ROWS, TILE, HopperPlan, deal
from vt_sglang.triton_kernels.prefill_merge import merge_prefill

Requests = list[tuple[int, int]]  # (prefix, new)

BORDERS = [
    (0, 1), (0, 127), (0, 128), (0, 129), (127, 1), (126, 1), (128, 1), (200, 56), (255, 1), (256, 128), (131, 130),
    (0, 0), (500, 0), (639, 61), (383, 97), (1, 255),
]  # fmt: skip


def _dealt(requests: Requests, **sizes: int) -> tuple[np.ndarray, np.ndarray, int]:
    return deal([new for _, new in requests], [prefix for prefix, _ in requests], **sizes)


def _rows_seen(record: np.ndarray, length: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an item, the positions of its rows, and a table [rows, tokens] of how often each row meets each token: as the
    kernel masks and moves its tiles."""
    _, new, _, first_row, begin, end, *_ = map(int, record)
    rows = np.arange(first_row, min(first_row + ROWS, new * group))
    positions = length - new + rows // group
    whole = (length - new + first_row // group + 1) // TILE
    seen = np.zeros((len(rows), length), int)
    for tile in range(end - 1, begin - 1, -1):
        at = tile * TILE
        if tile == end - 1:
            at = min(at, length - TILE)
        assert 0 <= at <= length - TILE, "a tile leaves the request"
        columns = np.arange(at, at + TILE)
        visible = np.ones((len(rows), TILE), bool)
        if tile == end - 1:
            visible = (columns <= positions[:, None]) & (columns >= tile * TILE)
        elif tile >= whole:
            visible = columns <= positions[:, None]
        seen[:, at : at + TILE] += visible
    return positions, seen


def _check(requests: Requests, *, group: int, kv_heads: int, processors: int) -> int:
    """Every row meets every token that it sees once, whatever is divided; returns the number of merges."""
    records, merges, places = _dealt(requests, group=group, kv_heads=kv_heads, processors=processors)
    costs = records[:, 5] - records[:, 4]
    slack = max(costs, default=0) / 8 + 1
    assert all(cost <= before + slack for before, cost in itertools.pairwise(costs)), "not heaviest first"
    if len(requests) == 1 and not len(merges):
        assert (np.diff(costs) <= 0).all()
    met = {
        (index, row): np.zeros(prefix + new, int)
        for index, (prefix, new) in enumerate(requests)
        if prefix + new > TILE
        for row in range(new * group)
    }
    starts = np.cumsum([0] + [new for _, new in requests])
    by_place = {}
    for record in records:
        index, first_row, place = int(record[2]), int(record[3]), int(record[6])
        prefix, new = requests[index]
        assert (record[:2] == (starts[index], new)).all()
        assert first_row % ROWS == 0
        _, seen = _rows_seen(record, prefix + new, group)
        assert (seen.sum(1) > 0).all(), "a row sees nothing of an item: it would divide by 0"
        for row, counts in enumerate(seen):
            met[index, first_row + row] += counts
        if place >= 0:
            assert place not in by_place
            by_place[place] = record
    for (index, row), counts in met.items():
        prefix, new = requests[index]
        assert (counts == (np.arange(prefix + new) <= prefix + row // group)).all(), (requests[index], row)
    assert sorted(by_place) == list(range(places))
    told = []
    for merge in merges:
        for part in range(merge[5]):
            told.append(merge[6] + part)
            assert (by_place[told[-1]][:4] == merge[:4]).all()
    assert sorted(told) == list(range(places)), "what is divided is not merged once"
    return len(merges)


@pytest.mark.parametrize("group", [1, 4, 5, 8, 16])
def test_borders(group: int) -> None:
    _check(BORDERS, group=group, kv_heads=2, processors=7)


@pytest.mark.parametrize("seed", range(20))
def test_any_batch(seed: int) -> None:
    draw = random.Random(seed)
    requests = [
        (draw.choice([0, draw.randrange(200), draw.randrange(6000)]), draw.choice([0, 1, draw.randrange(300)]))
        for _ in range(draw.randrange(1, 6))
    ]
    _check(requests, group=draw.choice([1, 4, 7]), kv_heads=draw.choice([1, 2]), processors=draw.choice([1, 8, 132]))


def test_few_items_are_divided_and_many_are_not() -> None:
    assert _check([(9000, 20)], group=4, kv_heads=1, processors=132) == 1
    records, merges, places = _dealt([(32_768, 512)], group=8, kv_heads=1, processors=132)
    assert len(merges) == 32
    assert 32 < len(records) == places <= 132 * 4
    for requests, kv_heads in (([(4096, 128)] * 16, 8), ([(0, 8192)], 8), ([(0, 100)], 8), ([(512, 64)], 1)):
        assert len(_dealt(requests, group=4, kv_heads=kv_heads, processors=132)[1]) == 0


@pytest.mark.parametrize(
    ("requests", "group", "kv_heads", "idle"),
    [
        ([(0, 8192)], 4, 8, 0.05),
        ([(32_768, 512)], 4, 8, 0.05),
        ([(131_072, 2048)], 4, 8, 0.05),
        ([(8192, 1024)] * 4, 4, 8, 0.05),
        ([(4096, 128)] * 16, 4, 8, 0.08),
        ([(32_768, 512)], 8, 1, 0.12),
        ([(131_072, 2048)], 8, 1, 0.05),
        ([(0, 8192)], 8, 1, 0.1),
        ([(512 + 16 * index, 1 + 2 * index) for index in range(64)], 4, 8, 0.05),
        ([(512 + 16 * index, 1 + 2 * index) for index in range(64)], 8, 1, 0.35),  # 2.4 items each
    ],
)
def test_processors_are_busy(requests: Requests, group: int, kv_heads: int, idle: float) -> None:
    """The steps of the program that has the most, in the order in which they are dealt, over an even share."""
    records, _, _ = _dealt(requests, group=group, kv_heads=kv_heads, processors=132)
    steps = np.repeat(records[:, 5] - records[:, 4], kv_heads)
    taken = np.zeros(132, int)
    for turn, its in enumerate(np.array_split(steps, range(132, len(steps), 132))):
        taken[: len(its)] += its if turn % 2 == 0 else 0
        taken[132 - len(its) :] += its[::-1] if turn % 2 else 0
    assert taken.sum() == steps.sum()
    assert taken.max() <= steps.sum() / 132 * (1 + idle), taken.max() / (steps.sum() / 132) - 1


def test_what_is_left_to_the_other_kernel() -> None:
    plan = HopperPlan(group=4, kv_heads=2, head_dim=64, device=DEVICE, processors=10)
    plan.update([5, 3, 0, 200, 1, 0, 1, 1, 28], [100, 126, 4, 0, 126, 500, 127, 128, 100])
    assert plan.short.tolist() == [1, 0, 0, 0, 1, 0, 1, 0, 1]
    assert (plan.short_requests, plan.short_tokens) == (4, 35)
    assert {int(request) for request in plan.records[:, 2]} == {1, 3, 7}
    plan.update([5], [0])
    assert plan.items == plan.merges == 0
    plan.update([0, 0], [500, 0])
    assert (plan.items, plan.short_requests) == (0, 0)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("group", [4, 5])
def test_merge(group: int, with_sinks: bool) -> None:
    generator = torch.Generator().manual_seed(group)
    kv_heads, head_dim, processors = 2, 64, 60
    requests = [(3000, 70), (0, 40), (2500, 33)]
    plan = HopperPlan(group=group, kv_heads=kv_heads, head_dim=head_dim, device=DEVICE, processors=processors)
    plan.update([new for _, new in requests], [prefix for prefix, _ in requests])
    assert plan.merges > 0
    heads = kv_heads * group
    plan.partial = torch.randn(plan.partial.shape, generator=generator).to(DEVICE)
    plan.partial_lse = (torch.randn(plan.partial_lse.shape, generator=generator) * 30).to(DEVICE)
    sinks = torch.linspace(-5, 20, heads) if with_sinks else None
    out = torch.full((sum(new for _, new in requests), heads, head_dim), float("nan"), device=DEVICE)
    expected = out.double().cpu()
    merge_prefill(plan, out, None if sinks is None else sinks.to(DEVICE))
    partial, lse = plan.partial.double().cpu(), plan.partial_lse.double().cpu()
    for start, new, _, first_row, _, parts, place, _ in plan.merge_records.tolist():
        for kv_head in range(kv_heads):
            at = [(place + part) * kv_heads + kv_head for part in range(parts)]
            for row in range(first_row, min(first_row + ROWS, new * group)):
                head = kv_head * group + row % group
                scores = lse[at, row - first_row] * torch.log(torch.tensor(2.0, dtype=torch.float64))
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head : head + 1].double()])
                weights = scores.softmax(0)[:parts]
                expected[start + row // group, head] = weights @ partial[at, row - first_row]
    written = ~expected.isnan()
    assert written.any()
    assert (out.cpu().isnan() == ~written).all(), "rows of others were written, or some of its own were not"
    assert_close(out.cpu()[written], expected[written], torch.float32, "merge")
