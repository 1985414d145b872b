# SPDX-License-Identifier: Apache-2.0
"""Decode attention on a GPU: the project's Triton kernels over the virtual tensors themselves."""

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.tiles import DecodePlan


class TritonDecode:
    """All decode attention of one model.

    Args:
        pool: where K and V are.
        model: its RadixAttention layers tell which shapes and windows there are; each gets a plan.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module) -> None:
        self._pool = pool
        device = torch.device(pool.device)
        self._plans: dict[tuple[int, int, int, int], DecodePlan] = {}
        for layer in model.modules():
            if isinstance(layer, RadixAttention) and _shape(layer) not in self._plans:
                kv_heads, group, v_head_dim, window = _shape(layer)
                self._plans[_shape(layer)] = DecodePlan(
                    max_batch=pool.core.slots,
                    kv_heads=kv_heads,
                    group=group,
                    head_dim=layer.qk_head_dim,
                    v_head_dim=v_head_dim,
                    itemsize=pool.store_dtype.itemsize,
                    multiprocessors=torch.cuda.get_device_properties(device).multi_processor_count,
                    device=device,
                    window=window,
                )

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward: cut the batch's work."""
        if forward_batch.seq_lens.shape[0] > 0:
            for plan in self._plans.values():
                plan.update(forward_batch.seq_lens)

    def forward(self, query: torch.Tensor, output: torch.Tensor, layer: RadixAttention, forward_batch: Any) -> None:
        """Attention of one layer; its K and V are stored already.

        Args:
            query: [batch, heads, head_dim].
            output: [batch, heads, v_head_dim], written.
        """
        if query.shape[0] == 0:
            return
        keys, values = self._pool.slots_view(layer.layer_id)
        decode_attention(
            query,
            keys,
            values,
            output,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            self._plans[_shape(layer)],
            scaling=layer.scaling,
        )


def _shape(layer: RadixAttention) -> tuple[int, int, int, int]:
    group = layer.tp_q_head_num // layer.tp_k_head_num
    return layer.tp_k_head_num, group, layer.v_head_dim, max(layer.sliding_window_size, -1)
