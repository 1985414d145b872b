# SPDX-License-Identifier: Apache-2.0
"""KV buffers: strided views of the arena, a pair a layer."""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from vt_sglang._core import KVCache
from vt_sglang.layout import KVLayout

NO_SLOTS: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)


class VTensorKVPool(MHATokenToKVPool):
    """K and V of all slots. `k_buffer[layer]` is `[slots * slot_tokens, kv_heads, head_dim]` over the whole arena:
    token p of slot s is its row `s * slot_tokens + p`. A row may be touched only where its slot is bound so far.

    As SGLang's pools do, it keeps float8 in buffers of uint8 (`store_dtype`); its views are of `dtype`."""

    def __init__(
        self,
        core: KVCache,
        layout: KVLayout,
        *,
        dtype: torch.dtype,
        device: str,
        start_layer: int,
        end_layer: int,
    ) -> None:
        self.core = core
        self.layout = layout
        # How far behind a request's end the attention kernels read.
        self.prefill_guard_tokens = self.decode_guard_tokens = 0
        # Of the batch that is being launched: its requests' slots, how many of them decode beside others that prefill
        # (they stand last), and what decode need not read, as requests share it.
        self.batch_slots = NO_SLOTS
        self.batch_decoding = 0
        self.batch_saved_tokens = 0.0
        self.layer_token_bytes = layout.token_bytes // layout.layers
        super().__init__(
            core.slots * core.slot_tokens - 1,  # SGLang adds the padding token
            page_size=1,
            dtype=dtype,
            head_num=layout.kv_heads,
            head_dim=layout.head_dim,
            v_head_dim=layout.v_head_dim,
            layer_num=layout.layers,
            device=device,
            enable_memory_saver=False,
            start_layer=start_layer,
            end_layer=end_layer,
        )

    def _create_buffers(self) -> None:
        self.k_scale_buffer = self.v_scale_buffer = None
        self.dq_k_buffer = self.dq_v_buffer = None
        layers = range(self.layout.layers)
        self.k_buffer = [self._view(self.layout.key_offset(i), self.layout.head_dim) for i in layers]
        self.v_buffer = [self._view(self.layout.value_offset(i), self.layout.v_head_dim) for i in layers]
        pairs = zip(self.k_buffer, self.v_buffer, strict=True)
        self._slots_views = [(self._by_slot(k), self._by_slot(v)) for k, v in pairs]

    def _view(self, offset: int, head_dim: int) -> torch.Tensor:
        shape = [self.core.slots * self.core.slot_tokens, self.layout.kv_heads, head_dim]
        strides = [self.layout.token_bytes // self.layout.itemsize, head_dim, 1]
        dtype = str(self.store_dtype).removeprefix("torch.")
        view: torch.Tensor = torch.utils.dlpack.from_dlpack(self.core.tensor(offset, shape, strides, dtype))
        return view

    def _by_slot(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer.view(self.dtype).view(self.core.slots, self.core.slot_tokens, *buffer.shape[1:])

    def _finalize_allocation_log(self, _num_tokens: int) -> None:
        self.mem_usage = sum(self.get_kv_size_bytes()) / 2**30

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Bytes of K and of V that the page budget holds; pages come on demand."""
        total = self.core.usage()["budget_pages"] * self.core.page_bytes
        keys = total * self.layout.head_dim // (self.layout.head_dim + self.layout.v_head_dim)
        return keys, total - keys

    def get_contiguous_buf_infos(self) -> NoReturn:
        """KV is contiguous by request and not by layer."""
        raise NotImplementedError("virtual tensors have no contiguous region a layer to transfer")

    def move_kv_cache(self, _tgt_loc: torch.Tensor, _src_loc: torch.Tensor) -> NoReturn:
        """Only speculative decoding moves tokens, and that is refused at start-up."""
        raise NotImplementedError("tokens of virtual tensors cannot be moved")

    def slot_view(self, layer_id: int, slot: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a slot's first `tokens` tokens in a layer: `[tokens, kv_heads, head_dim]` each, no copy."""
        keys, values = self.slots_view(layer_id)
        return keys[slot, :tokens], values[slot, :tokens]

    def slots_view(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of all slots in a layer: `[slots, slot_tokens, kv_heads, head_dim]` each, no copy."""
        keys, values = self._slots_views[layer_id - self.start_layer]
        return keys, values


def as_vtensor_pool(pool: Any) -> VTensorKVPool:
    """RuntimeError unless SGLang really built its pool on virtual tensors."""
    if not isinstance(pool, VTensorKVPool):
        raise RuntimeError(f"SGLang built a {type(pool).__name__} where virtual tensors were asked for")
    return pool
