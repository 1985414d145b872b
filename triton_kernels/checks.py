# SPDX-License-Identifier: Apache-2.0
"""What the kernels are given, compared with what they can take, before anything is launched.

A kernel believes the shapes and strides that it is told: what does not fit would be read or written elsewhere. Only
what the host knows is looked at, and no value on a device. Attention is called once a layer, so the comparisons are
written out one after the other, and what an error says is put together only where there is one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FLOAT8 = torch.float8_e4m3fn
INDICES = (torch.int64, torch.int32)
WORDS = (torch.int32,)
_SCALES = (torch.float32,)

LEAST_HEAD_DIM, MOST_HEAD_DIM = 16, 256
"""Elements of a head: what a matrix product has at least, and what the kernels are tested with, and their tiles fit a
GPU's shared memory with."""

CONTIGUOUS, LAST_CONTIGUOUS = "contiguous", "contiguous in the last dimension"

TMA_BYTES = 16
"""What the tensor memory accelerator (TMA) reads begins at multiples of these."""

Strides = tuple[int, ...]


class Heads(NamedTuple):
    """What a plan is made for, and all tensors of its calls have to be."""

    kv_heads: int | None
    """None: any number."""
    group: int
    """Query heads of a KV head."""
    head_dim: int
    v_head_dim: int
    itemsize: int
    """Bytes of an element of K and V."""
    device: int
    """Index of the GPU; -1: the CPU."""

    @staticmethod
    def of(
        *, kv_heads: int | None, group: int, head_dim: int, v_head_dim: int, itemsize: int, device: torch.device | str
    ) -> "Heads":
        """ValueError if no kernel can take such heads."""
        for name, dim in (("head_dim", head_dim), ("v_head_dim", v_head_dim)):
            if not LEAST_HEAD_DIM <= dim <= MOST_HEAD_DIM:
                raise ValueError(f"{name} is {dim}, and should be from {LEAST_HEAD_DIM} to {MOST_HEAD_DIM}")
        at_least("group", group, 1)
        if kv_heads is not None:
            at_least("kv_heads", kv_heads, 1)
        if itemsize not in (1, 2, 4):
            raise ValueError(f"itemsize is {itemsize}, and should be 1, 2 or 4 bytes")
        # Of "cuda" the index is that of the device that tensors now go to.
        return Heads(kv_heads, group, head_dim, v_head_dim, itemsize, torch.empty(0, device=device).get_device())


def on_hopper(device: torch.device | str) -> bool:
    """Whether a device has what the kernels in Gluon are made of."""
    device = torch.device(device)
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def at_least(name: str, number: int, least: int) -> None:
    """ValueError if it is less."""
    if number < least:
        raise ValueError(f"{name} is {number}, and should be at least {least}")


def refused(
    name: str, given: torch.Tensor, shape: Iterable[Any], dtypes: Sequence[torch.dtype], device: int, layout: str
) -> ValueError:
    """What an argument is, and what it should be.

    Args:
        shape: a number, or a name where any number will do, for each dimension.
        device: index; -1: the CPU.
        layout: what is asked of the strides.
    """
    kinds = " or ".join(_name(it) for it in dtypes)
    where = "cpu" if device < 0 else f"cuda:{device}"
    return ValueError(
        f"{name} is {list(given.shape)} {_name(given.dtype)} on {given.device} with strides {list(given.stride())}, "
        f"and should be [{', '.join(map(str, shape))}] {kinds} on {where}, {layout}"
    )


def unaligned(**tensors: torch.Tensor) -> ValueError:
    """TMA cannot read these, or one of them, from each token and head on."""
    found = ", ".join(
        f"{name} is at {it.data_ptr():#x} with strides {list(it.stride())} of {it.itemsize} bytes"
        for name, it in tensors.items()
    )
    return ValueError(f"{found}, and should begin at whole {TMA_BYTES} bytes, and step by such but for the last stride")


def not_tensors(**arguments: Any) -> TypeError:
    """Names those of the arguments that are no tensors."""
    others = [f"{name} is a {type(it).__name__}" for name, it in arguments.items() if not isinstance(it, torch.Tensor)]
    return TypeError(f"{', '.join(others)}, and should be a torch.Tensor")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    heads: Heads,
    batch: int,
    tokens: int | None,
) -> tuple[Strides, Strides, Strides, Strides]:
    """What all attention kernels ask of their arguments.

    Args:
        q: [rows, heads, head_dim].
        k, v: [slots, slot_tokens, kv_heads, head_dim and v_head_dim], of q's dtype or float8 e4m3.
        out: [rows, heads, v_head_dim] of q's dtype.
        slots, lengths: [batch] int32 or int64.
        heads, batch: what the plan was made for.
        tokens: the least rows that q has; None: it has one for each of the batch.

    Returns:
        Strides of q, k, v and out, which a launch is told: to ask for them takes its time.

    Raises:
        ValueError: an argument has another shape, dtype, layout or device.
        TypeError: one is no tensor.
    """
    kv_heads, group, head_dim, v_head_dim, itemsize, device = heads
    try:
        dtype, k_shape, k_stride, k_dtype = q.dtype, k.shape, k.stride(), k.dtype
        if (
            len(k_shape) != 4
            or k_shape[3] != head_dim
            or (kv_heads is not None and k_shape[2] != kv_heads)
            or k_stride[3] != 1
            or (k_dtype is not dtype and k_dtype is not FLOAT8)
            or k.get_device() != device
        ):
            shape = ("slots", "slot_tokens", "kv_heads" if kv_heads is None else kv_heads, head_dim)
            raise refused("k", k, shape, (dtype, FLOAT8), device, LAST_CONTIGUOUS)
        if k_dtype.itemsize != itemsize:
            raise ValueError(f"k is {_name(k_dtype)}, and should have the {itemsize} bytes an element of the plan")
        slot_count, slot_tokens, kv_heads, _ = k_shape
        v_shape, v_stride = (slot_count, slot_tokens, kv_heads, v_head_dim), v.stride()
        if v.shape != v_shape or v_stride[3] != 1 or v.dtype is not k_dtype or v.get_device() != device:
            raise refused("v", v, v_shape, (k_dtype,), device, LAST_CONTIGUOUS)
        q_shape, q_stride, q_heads = q.shape, q.stride(), kv_heads * group
        if (
            len(q_shape) != 3
            or q_shape[1] != q_heads
            or q_shape[2] != head_dim
            or (q_shape[0] != batch if tokens is None else q_shape[0] < tokens)
            or q_stride[2] != 1
            or dtype not in FLOATS
            or q.get_device() != device
        ):
            shape = (batch if tokens is None else f"at least {tokens}", q_heads, head_dim)
            raise refused("q", q, shape, FLOATS, device, LAST_CONTIGUOUS)
        out_shape, out_stride = (q_shape[0], q_heads, v_head_dim), out.stride()
        if out.shape != out_shape or out_stride[2] != 1 or out.dtype is not dtype or out.get_device() != device:
            raise refused("out", out, out_shape, (dtype,), device, LAST_CONTIGUOUS)
        of_batch = (batch,)
        if (
            slots.shape != of_batch
            or slots.dtype not in INDICES
            or not slots.is_contiguous()
            or slots.get_device() != device
        ):
            raise refused("slots", slots, of_batch, INDICES, device, CONTIGUOUS)
        if (
            lengths.shape != of_batch
            or lengths.dtype not in INDICES
            or not lengths.is_contiguous()
            or lengths.get_device() != device
        ):
            raise refused("lengths", lengths, of_batch, INDICES, device, CONTIGUOUS)
        return q_stride, k_stride, v_stride, out_stride
    except AttributeError:
        raise not_tensors(q=q, k=k, v=v, out=out, slots=slots, lengths=lengths) from None


def check_vector(
    name: str, it: torch.Tensor, length: int, dtypes: Sequence[torch.dtype], device: int, *, more: bool = False
) -> None:
    """ValueError unless it is [length], of one of these dtypes, contiguous and on this device; TypeError if it is no
    tensor. With `more` it may be longer."""
    try:
        shape = it.shape
        if more and len(shape) == 1 and shape[0] >= length:
            length = shape[0]
        if shape != (length,) or it.dtype not in dtypes or not it.is_contiguous() or it.get_device() != device:
            raise refused(name, it, (f"at least {length}" if more else length,), dtypes, device, CONTIGUOUS)
    except AttributeError:
        raise not_tensors(**{name: it}) from None


def check_scales(k_scale: torch.Tensor | None, v_scale: torch.Tensor | None, device: int) -> None:
    """The same for scales: [1] float32 or None."""
    if k_scale is not None:
        check_vector("k_scale", k_scale, 1, _SCALES, device)
    if v_scale is not None:
        check_vector("v_scale", v_scale, 1, _SCALES, device)


def check_cap(logit_cap: float) -> None:
    """ValueError unless it is a bound of the scores, or 0: none."""
    if not 0 <= logit_cap < math.inf:
        raise ValueError(f"logit_cap is {logit_cap}, and should be a positive number, or 0 for none")


def check_scaling(scaling: float) -> None:
    """ValueError unless the factor of the scores keeps their order: the largest stays so."""
    if not 0 < scaling < math.inf:
        raise ValueError(f"scaling is {scaling}, and should be a positive number")


def check_written(out: torch.Tensor, shape: tuple[int, int, int], device: int) -> None:
    """The same for the output of a merge: of this shape or with more rows, contiguous in the last dimension."""
    try:
        rows, heads, dim = shape
        given = out.shape
        if (
            len(given) != 3
            or given[0] < rows
            or given[1] != heads
            or given[2] != dim
            or out.stride()[2] != 1
            or out.dtype not in FLOATS
            or out.get_device() != device
        ):
            raise refused("out", out, (f"at least {rows}", heads, dim), FLOATS, device, LAST_CONTIGUOUS)
    except AttributeError:
        raise not_tensors(out=out) from None
