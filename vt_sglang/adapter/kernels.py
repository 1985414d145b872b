# SPDX-License-Identifier: Apache-2.0
"""Which attention kernels a server runs: `--vtensor-prefill-kernel` and `--vtensor-decode-kernel`.

`auto` is what was measured to be faster (docs/performance.md): for decode the project's own; for prefill
FlashAttention-3 where it can be had, but for batches of little work the project's own for Hopper GPUs.
"""

import logging
from typing import Any

import torch

from vt_sglang.adapter.decode import TritonDecode
from vt_sglang.adapter.fa3 import Fa3Decode, Fa3Prefill, Fa3UnavailableError
from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.adapter.prefill import TritonPrefill
from vt_sglang.adapter.prefill_choice import ChosenPrefill, is_open
from vt_sglang.config import Kernel
from vt_sglang.triton_kernels.checks import on_hopper

logger = logging.getLogger(__name__)


def prefill_kernel(
    wanted: Kernel, pool: VTensorKVPool, model: torch.nn.Module
) -> TritonPrefill | Fa3Prefill | ChosenPrefill:
    """ValueError if FlashAttention-3 is asked for by name and cannot be had."""
    if wanted is Kernel.TRITON:
        return TritonPrefill(pool, model)
    try:
        fa3 = Fa3Prefill(pool, model)
    except Fa3UnavailableError as error:
        if wanted is Kernel.FA3:
            raise _refused("prefill", error) from error
        logger.info("Prefill runs the project's kernels: no FlashAttention-3, since %s.", error)
        return TritonPrefill(pool, model)
    if (
        wanted is Kernel.FA3
        or not on_hopper(pool.device)
        or not any(is_open(layer, pool.dtype) for layer in attention_layers(model))
    ):
        return fa3
    processors = torch.cuda.get_device_properties(pool.device).multi_processor_count
    return ChosenPrefill(fa3, TritonPrefill(pool, model), pool, model, processors=processors)


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


def _refused(phase: str, error: Fa3UnavailableError) -> ValueError:
    return ValueError(f"--vtensor-{phase}-kernel fa3: {error}; leave it at auto, or choose triton")


def reads_past_the_end(kernel: Any) -> bool:
    """Whether a kernel may read behind a request's last token: memory has to be there, and it has to be finite."""
    return isinstance(kernel, Fa3Prefill | Fa3Decode | ChosenPrefill)


def name(kernel: Any) -> str:
    """How a kernel is called in logs."""
    if isinstance(kernel, ChosenPrefill):
        return f"{Kernel.FA3} or {Kernel.TRITON}, batch by batch"
    return Kernel.FA3 if isinstance(kernel, Fa3Prefill | Fa3Decode) else Kernel.TRITON
