# SPDX-License-Identifier: Apache-2.0
"""Store new keys and values where their tokens are: cache[location_i] = new_i / scale, K and V in one launch.

They may be stored finite: NaN as 0, and what is beyond the dtype's range as its largest number. A kernel that reads in
whole tiles weighs what it reads past a request's end with 0, and 0 times NaN is NaN: so one request's overflow would
reach others. In K as well, since a page that is used again at another index may show K where V is read.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .checks import FLOAT8, FLOATS, INDICES, check_scales, check_vector, not_tensors, refused
from .launches import dependent_launch

_CACHES = (*FLOATS, FLOAT8)
_TOGETHER = "heads side by side, each contiguous"


@triton.jit
def _finite(x, LARGEST: tl.constexpr):
    """[columns] float32: 0 where x is NaN, and no infinity."""
    return tl.minimum(tl.maximum(tl.where(x == x, x.to(tl.float32), 0.0), -LARGEST), LARGEST)


@triton.jit
def store_kernel(
    k,  # [tokens, kv_heads * head_dim]
    v,  # [tokens, kv_heads * v_head_dim]
    k_cache,  # [locations, kv_heads * head_dim], written
    v_cache,  # [locations, kv_heads * v_head_dim], written
    locations,  # [tokens] int32 or int64
    k_scale,  # [1] float32 or None
    v_scale,  # [1] float32 or None
    k_stride,
    v_stride,
    k_cache_stride,
    v_cache_stride,
    K_WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a token."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    location = tl.load(locations + token).to(tl.int64)
    columns = tl.arange(0, BLOCK_K)
    key = tl.load(k + token * k_stride + columns, mask=columns < K_WIDTH)
    if k_scale is not None:
        key = key.to(tl.float32) / tl.load(k_scale)
    if LARGEST > 0:
        key = _finite(key, LARGEST)
    tl.store(k_cache + location * k_cache_stride + columns, key.to(k_cache.dtype.element_ty), mask=columns < K_WIDTH)
    columns = tl.arange(0, BLOCK_V)
    value = tl.load(v + token * v_stride + columns, mask=columns < V_WIDTH)
    if v_scale is not None:
        value = value.to(tl.float32) / tl.load(v_scale)
    if LARGEST > 0:
        value = _finite(value, LARGEST)
    tl.store(v_cache + location * v_cache_stride + columns, value.to(v_cache.dtype.element_ty), mask=columns < V_WIDTH)


def warps(width: int) -> int:
    """Warps of a program that stores a token of `width` elements: a power of two, as Triton asks."""
    return 4 if width >= 1024 else 2 if width >= 512 else 1


def _check(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    locations: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> tuple[int, int, int, int]:
    """As `store_kv` says. Returns the strides of tokens, which a launch is told: to ask for them takes its time."""
    try:
        device, shape, stride = k.get_device(), k.shape, k.stride()
        if len(shape) != 3 or not _together(shape, stride) or k.dtype not in FLOATS:
            raise refused("k", k, ("tokens", "kv_heads", "head_dim"), FLOATS, device, _TOGETHER)
        tokens, heads, head_dim = shape
        k_step = stride[0]
        shape, stride = v.shape, v.stride()
        if (
            len(shape) != 3
            or shape[0] != tokens
            or shape[1] != heads
            or not _together(shape, stride)
            or v.dtype not in FLOATS
            or v.get_device() != device
        ):
            raise refused("v", v, (tokens, heads, "v_head_dim"), FLOATS, device, _TOGETHER)
        v_head_dim, v_step = shape[2], stride[0]
        shape, stride, dtype = k_cache.shape, k_cache.stride(), k_cache.dtype
        if (
            len(shape) != 3
            or shape[1] != heads
            or shape[2] != head_dim
            or not _together(shape, stride)
            or dtype not in _CACHES
            or k_cache.get_device() != device
        ):
            raise refused("k_cache", k_cache, ("locations", heads, head_dim), _CACHES, device, _TOGETHER)
        k_cache_step = stride[0]
        wanted, stride = (shape[0], heads, v_head_dim), v_cache.stride()
        if (
            v_cache.shape != wanted
            or not _together(wanted, stride)
            or v_cache.dtype is not dtype
            or v_cache.get_device() != device
        ):
            raise refused("v_cache", v_cache, wanted, (dtype,), device, _TOGETHER)
    except AttributeError:
        raise not_tensors(k=k, v=v, k_cache=k_cache, v_cache=v_cache) from None
    check_vector("locations", locations, tokens, INDICES, device)
    check_scales(k_scale, v_scale, device)
    return k_step, v_step, k_cache_step, stride[0]


def _together(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a token's heads are contiguous. Of one head the stride says nothing."""
    return stride[2] == 1 and (stride[1] == shape[2] or shape[1] == 1)


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    locations: torch.Tensor,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    finite: bool = False,
) -> None:
    """Write new tokens into the cache, in its dtype.

    Args:
        k: [tokens, kv_heads, head_dim] bfloat16, float16 or float32, each token's heads contiguous.
        v: [tokens, kv_heads, v_head_dim], likewise.
        k_cache: [locations, kv_heads, head_dim], of these dtypes or float8 e4m3, each location's heads contiguous, any
            stride between locations.
        v_cache: [locations, kv_heads, v_head_dim], likewise.
        locations: [tokens] int32 or int64, where each goes.
        k_scale, v_scale: [1] float32: what stored keys and values will be multiplied by when they are read.
        finite: store no NaN and no infinity.

    Raises:
        ValueError: an argument has another shape, dtype, layout or device.
        TypeError: one is no tensor.
    """
    strides = _check(k, v, k_cache, v_cache, locations, k_scale, v_scale)
    if k.shape[0] == 0:
        return
    k_width, v_width = k.shape[1] * k.shape[2], v.shape[1] * v.shape[2]
    pdl = dependent_launch(k.get_device())
    store_kernel[(k.shape[0],)](
        k,
        v,
        k_cache,
        v_cache,
        locations,
        k_scale,
        v_scale,
        *strides,
        K_WIDTH=k_width,
        V_WIDTH=v_width,
        LARGEST=torch.finfo(v_cache.dtype).max if finite else 0.0,
        BLOCK_K=triton.next_power_of_2(k_width),
        BLOCK_V=triton.next_power_of_2(v_width),
        PDL=pdl,
        num_warps=warps(k_width),
        **({"launch_pdl": True} if pdl else {}),
    )
