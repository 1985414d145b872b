# SPDX-License-Identifier: Apache-2.0
"""Whether a GPU can hold the virtual tensors, asked before anything is built on it."""

import logging

from vt_sglang.cuda_calls import CudaError
from vt_sglang.cuda_device import can_reserve, cuda_device

logger = logging.getLogger(__name__)


def check_device(ordinal: int, page_bytes: int, arena_bytes: int) -> None:
    """ValueError, with what to do, unless a device can map pages of this size and reserve the arena's addresses.

    Without cuda-python, or if it fails, this says nothing: the core then finds it out itself, a little later.

    Args:
        ordinal: of the CUDA device.
        page_bytes: size of a physical page.
        arena_bytes: of addresses, for all virtual tensors.
    """
    try:
        device = cuda_device(ordinal)
        reservable = device.virtual_memory and can_reserve(arena_bytes, ordinal)
    except ImportError:
        return
    except CudaError as error:
        logger.warning("cuda-python could not ask CUDA device %d for its memory (%s).", ordinal, error)
        return
    if not device.virtual_memory:
        raise ValueError(
            f"CUDA device {ordinal} has no virtual memory management: serve without --radix-cache-backend vtensor"
        )
    if page_bytes % device.granularity_bytes:
        raise ValueError(
            f"pages of {page_bytes} bytes are no multiple of the {device.granularity_bytes} that CUDA device {ordinal} "
            "allocates at a time: leave --vtensor-page-bytes out, or choose a multiple"
        )
    if not reservable:
        raise ValueError(
            f"{arena_bytes / 2**40:.2f} TiB of GPU addresses cannot be reserved: lower --max-running-requests or "
            "--context-length"
        )
