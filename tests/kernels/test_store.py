# SPDX-License-Identifier: Apache-2.0
"""Keys and values land where they belong and nowhere else."""

import pytest
import torch
from arena import CUDA, DEVICE, DTYPES
from vt_sglang.triton_kernels.store import store_kv, warps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "v_head_dim"), [(8, 128, 128), (1, 64, 64), (3, 80, 48), (12, 64, 64)]
)
def test_store(dtype: torch.dtype, kv_heads: int, head_dim: int, v_head_dim: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, places = 17, 40
    k = torch.randn(tokens, kv_heads, head_dim, generator=generator).to(dtype)
    v = torch.randn(tokens, kv_heads, v_head_dim, generator=generator).to(dtype)
    locations = torch.randperm(places, generator=generator)[:tokens]
    width = kv_heads * (head_dim + v_head_dim)
    cache = torch.full((places, 3, width), float("nan"), dtype=dtype, device=DEVICE)
    expected = cache.clone()
    expected[locations.to(DEVICE), 1] = torch.cat([k.flatten(1), v.flatten(1)], 1).to(DEVICE)
    k_cache, v_cache = cache[:, 1].split([kv_heads * head_dim, kv_heads * v_head_dim], dim=1)
    store_kv(
        k.to(DEVICE),
        v.to(DEVICE),
        k_cache.unflatten(1, (kv_heads, head_dim)),
        v_cache.unflatten(1, (kv_heads, v_head_dim)),
        locations.to(DEVICE),
    )
    torch.testing.assert_close(cache, expected, rtol=0, atol=0, equal_nan=True)


def test_warps_are_a_power_of_two() -> None:
    assert all(warps(width).bit_count() == 1 for width in range(1, 4097))


def test_into_float8_with_scales() -> None:
    """Values that float8 has are stored exactly; the interpreter does not round the others as a GPU does."""
    k, v = torch.randn(2, 5, 2, 16).to(torch.float8_e4m3fn).float() * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    cache = torch.zeros(2, 9, 2, 16, dtype=torch.float8_e4m3fn, device=DEVICE)
    locations = torch.tensor([8, 0, 3, 4, 1], device=DEVICE)
    k_scale, v_scale = torch.tensor([0.5], device=DEVICE), torch.tensor([2.0], device=DEVICE)
    store_kv(k.to(DEVICE), v.to(DEVICE), cache[0], cache[1], locations, k_scale=k_scale, v_scale=v_scale)
    read = cache.float().cpu()[:, locations.cpu()]
    torch.testing.assert_close(read[0] * 0.5, k, rtol=0, atol=0)
    torch.testing.assert_close(read[1] * 2.0, v, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite(dtype: torch.dtype) -> None:
    """What is no number becomes one."""
    k = torch.tensor([float("nan"), float("inf"), -1.5, 0.0]).repeat(4).to(dtype).view(1, 1, 16).to(DEVICE)
    cache = torch.zeros(2, 3, 1, 16, dtype=dtype, device=DEVICE)
    v = torch.cat([k[..., :8], -k[..., :8]], -1)
    store_kv(k, v, cache[0], cache[1], torch.tensor([2], device=DEVICE), finite=True)
    most = torch.finfo(dtype).max
    torch.testing.assert_close(cache[0, 2, 0].cpu(), torch.tensor([0, most, -1.5, 0] * 4, dtype=dtype), rtol=0, atol=0)
    expected = torch.tensor([0, most, -1.5, 0] * 2 + [0, -most, 1.5, 0] * 2, dtype=dtype)
    torch.testing.assert_close(cache[1, 2, 0].cpu(), expected, rtol=0, atol=0)
    assert not cache[:, :2].any()


@pytest.mark.skipif(not CUDA, reason="the interpreter does not round as a GPU does")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float8_rounds_to_nearest_and_ends_at_its_largest(dtype: torch.dtype, scaled: bool) -> None:
    """As torch rounds; beyond 448 it is not NaN, which would spoil the whole request."""
    k = torch.randn(64, 2, 16, device=DEVICE).to(dtype) * 100
    v = torch.linspace(-60000, 60000, 64 * 2 * 16, device=DEVICE).view(64, 2, 16).to(dtype)
    cache = torch.zeros(2, 64, 2, 16, dtype=torch.float8_e4m3fn, device=DEVICE)
    scales = {name: torch.tensor([2.0], device=DEVICE) for name in ("k_scale", "v_scale")} if scaled else {}
    store_kv(k, v, cache[0], cache[1], torch.arange(64, device=DEVICE), **scales)
    for stored, given in zip(cache, (k, v), strict=True):
        expected = (given.float() / (2 if scaled else 1)).clamp(-448, 448).to(torch.float8_e4m3fn)
        torch.testing.assert_close(stored.float(), expected.float(), rtol=0, atol=0)


def test_nothing_to_store() -> None:
    empty, cache = torch.empty(0, 2, 16, device=DEVICE), torch.zeros(4, 2, 16, device=DEVICE)
    store_kv(empty, empty, cache, cache, torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert not cache.any()
