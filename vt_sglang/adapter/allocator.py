# SPDX-License-Identifier: Apache-2.0
"""The token allocator, as far as there is one: a view of the core's ledger."""

from typing import Any, NoReturn

import torch
from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

from vt_sglang._core import KVCache


class VTensorAllocator(BaseTokenToKVPoolAllocator):
    """Tells SGLang how many tokens pages can be taken for. Pages are taken by slots, never by this class."""

    def __init__(self, core: KVCache, *, dtype: torch.dtype, device: str, kvcache: Any) -> None:
        super().__init__(core.total_tokens, 1, dtype, device, kvcache, need_sort=False)
        self.core = core

    def available_size(self) -> int:
        """Tokens for which whole pages can be taken without evicting."""
        return self.core.available_tokens()

    def alloc(self, _need_size: int) -> NoReturn:
        """Tokens belong to a slot; `alloc_for_extend` and `alloc_for_decode` back them."""
        raise RuntimeError("tokens of virtual tensors are allocated by slot; this feature of SGLang is not supported")

    def free(self, _free_index: torch.Tensor) -> NoReturn:
        """See `alloc`."""
        raise RuntimeError("tokens of virtual tensors are freed with their slot; this feature is not supported")

    def free_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        """Tokens at the end of a request that are not to be cached: they go when its slot is released, at once."""

    def clear(self) -> None:
        """After a flush: the tree gave the pages back."""
