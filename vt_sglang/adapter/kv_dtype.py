# SPDX-License-Identifier: Apache-2.0
"""Which dtypes KV may be kept in, and where."""

from collections.abc import Iterable
from typing import Any

import torch

FLOAT8_CAPABILITY = (8, 9)
"""The first GPUs that convert to and from float8 e4m3: Ada; Hopper is 9.0."""

# What the tensor memory accelerator reads begins at multiples of 16 bytes.
_GPU_HEAD_BYTES = 16


def refuse_kv_option(server_args: Any) -> None:
    """ValueError if --kv-cache-dtype names another dtype than the model's, but for float8."""
    name, model_dtype = server_args.kv_cache_dtype, server_args.get_model_config().dtype
    if name in ("bf16", "bfloat16") and model_dtype != torch.bfloat16:
        raise ValueError(
            f"--radix-cache-backend vtensor does not go with:\n  --kv-cache-dtype {name}: this model computes in "
            f"{str(model_dtype).removeprefix('torch.')}; leave it at auto, or add --dtype bfloat16"
        )


def refuse_kv_of_model(server_args: Any) -> None:
    """As `refuse_kv_dtype`, on a GPU, by what arguments and the model's config tell before its weights are loaded. A
    checkpoint that chooses float8 by itself is only known afterwards."""
    model = server_args.get_model_config()
    dtype = torch.float8_e4m3fn if server_args.kv_cache_dtype == "fp8_e4m3" else model.dtype
    capability = torch.cuda.get_device_capability(server_args.base_gpu_id)
    refuse_kv_dtype(dtype, (model.head_dim, model.v_head_dim), capability)


def refuse_kv_dtype(dtype: torch.dtype, head_dims: Iterable[int], capability: tuple[int, int] | None) -> None:
    """ValueError if the attention kernels cannot read KV in this dtype; a checkpoint may have chosen it.

    Args:
        dtype: that SGLang chose.
        head_dims: elements of a head of K and of V.
        capability: the GPU's compute capability; None: on a CPU.
    """
    if dtype.itemsize == 1 and dtype != torch.float8_e4m3fn:
        raise ValueError(f"KV in {dtype} is not supported: choose --kv-cache-dtype fp8_e4m3 or auto")
    if capability is None:
        return
    if dtype.itemsize == 1 and capability < FLOAT8_CAPABILITY:
        raise ValueError(
            f"KV in float8 needs a GPU of compute capability {'.'.join(map(str, FLOAT8_CAPABILITY))} or more, and this "
            f"one has {'.'.join(map(str, capability))}: choose --kv-cache-dtype bf16"
        )
    for dim in head_dims:
        if dim * dtype.itemsize % _GPU_HEAD_BYTES:
            advice = "choose --kv-cache-dtype bf16" if dtype.itemsize == 1 else "serve without virtual tensors"
            raise ValueError(
                f"heads of {dim} elements in {dtype} are no multiple of the {_GPU_HEAD_BYTES} bytes that the GPU's "
                f"attention kernels read: {advice}"
            )
