# SPDX-License-Identifier: Apache-2.0
"""Which attention kernels a server runs: `--vtensor-prefill-kernel` and `--vtensor-decode-kernel`.

`auto` is what was measured to be faster of what servers run (docs/performance.md): FlashAttention-3 for prefill, where
it can be had, and the project's own for decode.
"""

import logging
from typing import Any

import torch

from vt_sglang.adapter.decode import TritonDecode
from vt_sglang.adapter.fa3 import Fa3Decode, Fa3Prefill, Fa3UnavailableError
from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.prefill import TritonPrefill
from vt_sglang.config import Kernel

logger = logging.getLogger(__name__)


def prefill_kernel(wanted: Kernel, pool: VTensorKVPool, model: torch.nn.Module) -> TritonPrefill | Fa3Prefill:
    """ValueError if FlashAttention-3 is asked for by name and cannot be had."""
    if wanted is Kernel.TRITON:
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


def _refused(phase: str, error: Fa3UnavailableError) -> ValueError:
    return ValueError(f"--vtensor-{phase}-kernel fa3: {error}; leave it at auto, or choose triton")


def name(kernel: Any) -> str:
    """How a kernel is called in flags and logs."""
    return Kernel.FA3 if isinstance(kernel, Fa3Prefill | Fa3Decode) else Kernel.TRITON
