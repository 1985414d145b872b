# SPDX-License-Identifier: Apache-2.0
"""Which attention kernels a server runs: `--vtensor-prefill-kernel` and `--vtensor-decode-kernel`.

`auto` is what was measured to be faster (docs/performance.md): for decode the project's own; for prefill
FlashAttention-3 where it can be had, but for models with one KV head a GPU the project's own for Hopper GPUs.
"""

import logging
from typing import Any

import torch

from vt_sglang.adapter.decode import TritonDecode
from vt_sglang.adapter.fa3 import Fa3Decode, Fa3Prefill, Fa3UnavailableError
from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.adapter.prefill import TritonPrefill, hopper_takes
from vt_sglang.config import Kernel
from vt_sglang.triton_kernels.prefill_hopper import on_hopper

logger = logging.getLogger(__name__)


def prefill_kernel(wanted: Kernel, pool: VTensorKVPool, model: torch.nn.Module) -> TritonPrefill | Fa3Prefill:
    """ValueError if FlashAttention-3 is asked for by name and cannot be had."""
    if wanted is Kernel.TRITON or (wanted is Kernel.AUTO and _one_kv_head_on_hopper(pool, model)):
        return TritonPrefill(pool, model)
    try:
        return Fa3Prefill(pool, model)
    except Fa3UnavailableError as error:
        if wanted is Kernel.FA3:
            raise _refused("prefill", error) from error
        logger.info("Prefill runs the project's kernels: no FlashAttention-3, since %s.", error)
        return TritonPrefill(pool, model)


def decode_kernel(
    wanted: Kernel, pool: VTensorKVPool, model: torch.nn.Module, *, share: bool
) -> TritonDecode | Fa3Decode:
    """ValueError if FlashAttention-3 is asked for by name and cannot be had. `share` is for the project's own."""
    if wanted is not Kernel.FA3:
        return TritonDecode(pool, model, share=share)
    try:
        return Fa3Decode(pool, model)
    except Fa3UnavailableError as error:
        raise _refused("decode", error) from error


def _one_kv_head_on_hopper(pool: VTensorKVPool, model: torch.nn.Module) -> bool:
    return on_hopper(pool.device) and all(
        layer.tp_k_head_num == 1 and hopper_takes(layer, pool.dtype) for layer in attention_layers(model)
    )


def _refused(phase: str, error: Fa3UnavailableError) -> ValueError:
    return ValueError(f"--vtensor-{phase}-kernel fa3: {error}; leave it at auto, or choose triton")


def name(kernel: Any) -> str:
    """How a kernel is called in flags and logs."""
    return Kernel.FA3 if isinstance(kernel, Fa3Prefill | Fa3Decode) else Kernel.TRITON
