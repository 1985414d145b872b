# SPDX-License-Identifier: Apache-2.0
"""Which dtypes KV may be kept in, and where."""

from typing import Any

import torch

from vt_sglang.layout import KVLayout

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


def refuse_kv_dtype(dtype: torch.dtype, layout: KVLayout, capability: tuple[int, int] | None) -> None:
    """ValueError if the attention kernels cannot read KV in this dtype; a checkpoint may have chosen it.

    Args:
        dtype: that SGLang chose.
        layout: of this dtype.
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
    for dim in {layout.head_dim, layout.v_head_dim}:
        if dim * layout.itemsize % _GPU_HEAD_BYTES:
            advice = "choose --kv-cache-dtype bf16" if dtype.itemsize == 1 else "serve without virtual tensors"
            raise ValueError(
                f"heads of {dim} elements in {dtype} are no multiple of the {_GPU_HEAD_BYTES} bytes that the GPU's "
                f"attention kernels read: {advice}"
            )
