# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill attention against float64: in Triton's interpreter without a GPU, compiled with one."""

import pytest
import torch
from arena import DEVICE, DTYPES, SERVED_DTYPES, Arena, assert_close
from reference import attend
from vt_sglang.triton_kernels.prefill import PrefillConfig, PrefillPlan, prefill_attention

SMALL = PrefillConfig(rows=16, tile=16, warps=4, stages=2)


def check(
    requests: list[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 64,
    v_head_dim: int | None = None,
    dtype: torch.dtype = torch.float16,
    kv_dtype: torch.dtype | None = None,
    config: PrefillConfig | None = SMALL,
    window: int = -1,
    scale_of_q: float = 1.0,
    **options: object,
) -> None:
    """Run the kernel on requests of (prefix, new) tokens and compare each."""
    generator = torch.Generator().manual_seed(len(requests) + head_dim)
    lengths = [prefix + new for prefix, new in requests]
    v_dim = v_head_dim or head_dim
    arena = Arena(
        lengths, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=v_dim, dtype=kv_dtype or dtype, generator=generator
    )
    starts = [0]
    for _, new in requests:
        starts.append(starts[-1] + new)
    heads = kv_heads * group
    q = (torch.randn(starts[-1], heads, head_dim, generator=generator) * scale_of_q).to(dtype)
    out = torch.full((starts[-1], heads, v_dim), float("nan"), dtype=dtype, device=DEVICE)
    sizes = {"head_dim": head_dim, "v_head_dim": v_dim, "itemsize": arena.k.element_size()}
    plan = PrefillPlan(group=group, device=DEVICE, config=config, **sizes)
    query_starts = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    plan.update(query_starts, starts[-1])
    on_device = {name: it.to(DEVICE) if isinstance(it, torch.Tensor) else it for name, it in options.items()}
    prefill_attention(
        q.to(DEVICE),
        arena.k,
        arena.v,
        out,
        arena.slots.to(DEVICE),
        torch.tensor(lengths, device=DEVICE),
        query_starts,
        plan,
        scaling=head_dim**-0.5,
        window=window,
        **on_device,
    )
    for row, length in enumerate(lengths):
        keys, values = arena.request(row, length)
        first, last = starts[row], starts[row + 1]
        if first == last:
            continue
        expected = attend(
            q[first:last],
            keys * options.get("k_scale", 1.0),
            values * options.get("v_scale", 1.0),
            scaling=head_dim**-0.5,
            window=window,
            logit_cap=options.get("logit_cap", 0.0),
            sinks=options.get("sinks"),
        )
        assert_close(out[first:last], expected, dtype, f"request {row}, {requests[row]}")


RAGGED = [(0, 1), (0, 16), (5, 1), (16, 17), (0, 0), (31, 33), (100, 3), (0, 70), (130, 40), (15, 1), (16, 16)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged(dtype: torch.dtype) -> None:
    """Prefix 0 and long, lengths from 1 to past several tiles and at their borders, an empty request between."""
    check(RAGGED, dtype=dtype)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (1, 8), (2, 5), (1, 40)])
def test_heads(head_dim: int, kv_heads: int, group: int) -> None:
    # The query heads of a KV head are rows of the same tiles: with large groups few tokens fill several tiles.
    requests = [(5, 9), (40, 23), (0, 7)] if group < 16 else [(5, 2), (20, 5), (0, 3)]
    check(requests, kv_heads=kv_heads, group=group, head_dim=head_dim)


def test_the_configuration_that_is_chosen() -> None:
    check([(300, 150), (0, 40), (127, 130)], config=None)
    check([(300, 150), (0, 40)], config=None, head_dim=256)


@pytest.mark.parametrize("dtype", SERVED_DTYPES)
@pytest.mark.parametrize("head_dim", [80, 96, 128])
def test_what_servers_run(head_dim: int, dtype: torch.dtype) -> None:
    """The configuration that is chosen, with requests that end before, at and past the borders of its tiles of 64 query
    rows and 64 tokens."""
    requests = [(61, 2), (60, 4), (60, 9), (0, 33), (127, 2), (0, 1)]
    check(requests, kv_heads=1, group=2, head_dim=head_dim, dtype=dtype, config=None)


def test_values_of_another_width() -> None:
    check([(5, 9), (40, 23)], head_dim=96, v_head_dim=64)


@pytest.mark.parametrize("window", [0, 1, 15, 16, 40, 1000])
def test_sliding_window(window: int) -> None:
    check(RAGGED, window=window)


def test_logit_cap() -> None:
    check(RAGGED, logit_cap=1.5)


@pytest.mark.parametrize("window", [-1, 20])
def test_sinks(window: int) -> None:
    check(RAGGED, sinks=torch.linspace(-2, 3, 4), window=window)


def test_float8_with_scales() -> None:
    check(RAGGED, kv_dtype=torch.float8_e4m3fn, k_scale=torch.tensor([0.5]), v_scale=torch.tensor([2.0]))


def test_large_scores() -> None:
    """The softmax of scores beyond the reach of float16's and float32's exponential."""
    check(RAGGED, scale_of_q=60.0)


def test_a_plan_of_some_requests() -> None:
    """As the kernel for Hopper leaves some: each has all its tiles, its last ones first, however few are launched."""
    plan = PrefillPlan(group=4, head_dim=64, v_head_dim=64, itemsize=2, device=DEVICE)
    new, among = [100, 40, 0, 300, 1], [1, 0, 1, 0, 1]
    starts = torch.tensor([0, *new], device=DEVICE).cumsum(0).int()
    plan.update(starts, 101, among=torch.tensor(among, dtype=torch.int32, device=DEVICE), requests=2)
    rows = plan.config.rows
    of_first, of_last = -(-100 * 4 // rows), -(-4 // rows)
    requests, indices = (it[: plan.tiles].tolist() for it in (plan.tile_requests, plan.tile_indices))
    count = of_first + of_last
    assert requests[:count] == [0] * of_first + [4] * of_last
    assert indices[:count] == [*reversed(range(of_first)), *reversed(range(of_last))]
    assert set(requests[count:]) <= {-1}
