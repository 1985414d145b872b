# SPDX-License-Identifier: Apache-2.0
"""Decode attention on a GPU, over the virtual tensors themselves."""

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.kv_scales import KVScales
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.tiles import DecodePlan


class TritonDecode:
    """Attention of one new token a request.

    Args:
        pool: where K and V are.
        model: its attention layers tell which shapes and windows there are; each gets a plan.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module) -> None:
        self._pool = pool
        self._scales = KVScales(pool, model)
        device = torch.device(pool.device)
        self._plans: dict[tuple[int, ...], DecodePlan] = {}
        for layer in attention_layers(model):
            if _shape(layer) in self._plans:
                continue
            self._plans[_shape(layer)] = DecodePlan(
                max_batch=pool.core.slots,
                kv_heads=layer.tp_k_head_num,
                group=layer.tp_q_head_num // layer.tp_k_head_num,
                head_dim=layer.qk_head_dim,
                v_head_dim=layer.v_head_dim,
                itemsize=pool.store_dtype.itemsize,
                multiprocessors=torch.cuda.get_device_properties(device).multi_processor_count,
                device=device,
                window=layer.sliding_window_size,
            )

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward, on the device alone, so that it may be captured in a CUDA graph: cut the batch's work."""
        self._slots, self._lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        for plan in self._plans.values():
            plan.update(self._slots, self._lengths)

    def forward(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        layer: RadixAttention,
        sinks: torch.Tensor | None,
    ) -> None:
        """Attention of one layer; its K and V are stored already.

        Args:
            query: [batch, heads, head_dim].
            output: [batch, heads, v_head_dim], written.
            sinks: [heads] or None.
        """
        keys, values = self._pool.slots_view(layer.layer_id)
        scales = self._scales.of(layer)
        decode_attention(
            query,
            keys,
            values,
            output,
            self._slots,
            self._lengths,
            self._plans[_shape(layer)],
            scaling=layer.scaling,
            logit_cap=layer.logit_cap,
            sinks=sinks,
            k_scale=scales.k,
            v_scale=scales.v,
        )


def _shape(layer: RadixAttention) -> tuple[int, ...]:
    sizes = (layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim)
    return (*sizes, layer.sliding_window_size)
