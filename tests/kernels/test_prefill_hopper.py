# SPDX-License-Identifier: Apache-2.0
"""Prefill on Hopper against float64, on such a GPU."""

import pytest
import torch
from arena import CUDA, DEVICE, Arena, assert_close
from reference import attend
from vt_sglang.triton_kernels.prefill import PrefillPlan, prefill_attention
from vt_sglang.triton_kernels.prefill_hopper import prefill_hopper_attention
from vt_sglang.triton_kernels.prefill_hopper_plan import HopperPlan

pytestmark = pytest.mark.skipif(
    not CUDA or torch.cuda.get_device_capability()[0] != 9, reason="needs a GPU of compute capability 9"
)

RAGGED = [
    (0, 128), (0, 129), (0, 300), (127, 1), (128, 1), (200, 56), (255, 1), (256, 128), (131, 130), (0, 0), (639, 61),
    (383, 97), (128, 128), (1, 255), (95, 33),
]  # fmt: skip
SHORT = [(0, 1), (0, 127), (100, 27), (126, 1), (50, 0)]


def check(
    requests: list[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 4,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    processors: int | None = None,
    sinks: bool = False,
    thought_longer: int = 0,
    scale_of_q: float = 2.0,
) -> int:
    """Compare each request of (prefix, new) tokens; returns how many row tiles were divided. The plan takes each for
    `thought_longer` tokens longer than it is."""
    generator = torch.Generator().manual_seed(len(requests) + head_dim + group)
    lengths = [prefix + new for prefix, new in requests]
    new = [new for _, new in requests]
    arena = Arena(
        lengths,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        dtype=dtype,
        slot_tokens=max(lengths) + 140,
        generator=generator,
    )
    heads = kv_heads * group
    # Rows of queries with others between, as they are cut out of a projection; and padding behind them.
    q = (torch.randn(sum(new) + 9, heads + kv_heads, head_dim, generator=generator) * scale_of_q).to(dtype)[:, :heads]
    out = torch.full(q.shape, float("nan"), dtype=dtype, device=DEVICE)
    sink = torch.linspace(-2, 3, heads) if sinks else None
    on_device = None if sink is None else sink.to(DEVICE)
    slots = arena.slots.to(DEVICE)
    plan = HopperPlan(group=group, kv_heads=kv_heads, head_dim=head_dim, device=DEVICE, processors=processors)
    plan.update(new, [prefix + thought_longer for prefix, _ in requests])
    plan.partial.fill_(float("nan"))
    plan.partial_lse.fill_(float("nan"))
    query = torch.empty_strided(q.shape, q.stride(), dtype=dtype, device=DEVICE).copy_(q)
    device_lengths = torch.tensor(lengths, device=DEVICE)
    options = {"scaling": head_dim**-0.5, "sinks": on_device}
    prefill_hopper_attention(query, arena.k, arena.v, out, slots, device_lengths, plan, **options)
    if plan.short_requests:
        starts = torch.tensor([0, *new], device=DEVICE).cumsum(0).int()
        rest = PrefillPlan(group=group, head_dim=head_dim, v_head_dim=head_dim, itemsize=2, device=DEVICE)
        rest.update(starts, plan.short_tokens, among=plan.short, requests=plan.short_requests)
        prefill_attention(query, arena.k, arena.v, out, slots, device_lengths, starts, rest, **options)
    torch.cuda.synchronize()
    first = 0
    for row, length in enumerate(lengths):
        last = first + new[row]
        if first < last:
            keys, values = arena.request(row, length)
            expected = attend(q[first:last], keys, values, scaling=head_dim**-0.5, sinks=sink)
            assert_close(out[first:last], expected, dtype, f"request {row}, {requests[row]}")
        first = last
    assert out[first:].isnan().all(), "rows of nobody were written"
    return plan.merges


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ragged(dtype: torch.dtype) -> None:
    """Prefix 0 and long, lengths at the borders of tiles, an empty request between; NaN past each length."""
    check(RAGGED, dtype=dtype)


@pytest.mark.parametrize(("kv_heads", "group"), [(3, 1), (2, 2), (8, 4), (1, 5), (1, 7), (1, 8), (2, 16), (1, 64)])
def test_heads(kv_heads: int, group: int) -> None:
    check(RAGGED, kv_heads=kv_heads, group=group)


@pytest.mark.parametrize("group", [4, 5])
def test_heads_of_64(group: int) -> None:
    check(RAGGED, head_dim=64, group=group)


@pytest.mark.parametrize("processors", [None, 1, 3])
def test_programs_take_many_items(processors: int | None) -> None:
    """The turns, barriers and stages go on from item to item, many or few tiles each."""
    check([(700 + 13 * index, 1 + 7 * index % 90) for index in range(40)], kv_heads=8, processors=processors)


def test_long() -> None:
    check([(0, 2048), (3000, 777), (0, 1500)], kv_heads=4)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("group", [4, 5])
@pytest.mark.parametrize("requests", [[(9000, 20)], [(2000, 77), (0, 300), (3001, 40)], [(1000, 33), (600, 5)]])
def test_divided(requests: list[tuple[int, int]], group: int, sinks: bool) -> None:
    assert check(requests, kv_heads=1, group=group, sinks=sinks) > 0


def test_sinks() -> None:
    check(RAGGED, sinks=True)


def test_short_requests_among_others() -> None:
    check([*SHORT, *RAGGED[:6], *SHORT, (5000, 3)], sinks=True)
    check([*RAGGED[:3], *SHORT], group=5)
    check(SHORT)


def test_nothing_new() -> None:
    check([(200, 0), (0, 0)])


def test_large_scores() -> None:
    """The softmax of scores beyond the reach of float32's exponential."""
    check(RAGGED, scale_of_q=60.0)


def test_lengths_are_the_device_s() -> None:
    check([(200, 1), (255, 1), (383, 1), (256, 1), (2047, 1), (3000, 128)], thought_longer=1)
    check([(2047, 1)], kv_heads=1, thought_longer=1)
    check([(126, 1), (39, 1), (127, 1), (0, 5)], thought_longer=1)
