# SPDX-License-Identifier: Apache-2.0
"""Prefix-prefill attention on a GPU, over the virtual tensors themselves."""

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.kv_scales import KVScales
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.triton_kernels.prefill import PrefillPlan, prefill_attention


def _query_starts(forward_batch: Any) -> torch.Tensor:
    """[batch + 1] int32: where each request's new tokens begin, and their end. Computed on the device."""
    lengths = forward_batch.extend_seq_lens
    starts = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=starts[1:])
    return starts


class TritonPrefill:
    """Attention of several new tokens a request, behind a prefix or none.

    Args:
        pool: where K and V are.
        model: its attention layers tell which shapes there are; each gets a plan.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module) -> None:
        self._pool = pool
        self._scales = KVScales(pool, model)
        self._plans: dict[tuple[int, ...], PrefillPlan] = {}
        for layer in attention_layers(model):
            if _shape(layer) not in self._plans:
                self._plans[_shape(layer)] = PrefillPlan(
                    group=layer.tp_q_head_num // layer.tp_k_head_num,
                    head_dim=layer.qk_head_dim,
                    v_head_dim=layer.v_head_dim,
                    itemsize=pool.store_dtype.itemsize,
                    device=pool.device,
                )

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward: deal out the batch's rows."""
        self._slots, self._lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        self._starts = _query_starts(forward_batch)
        tokens = sum(forward_batch.extend_seq_lens_cpu)
        for plan in self._plans.values():
            plan.update(self._starts, tokens)

    def forward(
        self, query: torch.Tensor, output: torch.Tensor, layer: RadixAttention, sinks: torch.Tensor | None
    ) -> None:
        """Attention of one layer; its K and V are stored already.

        Args:
            query: [tokens, heads, head_dim].
            output: [tokens, heads, v_head_dim], written.
            sinks: [heads] or None.
        """
        keys, values = self._pool.slots_view(layer.layer_id)
        scales = self._scales.of(layer)
        prefill_attention(
            query,
            keys,
            values,
            output,
            self._slots,
            self._lengths,
            self._starts,
            self._plans[_shape(layer)],
            scaling=layer.scaling,
            logit_cap=layer.logit_cap,
            window=layer.sliding_window_size,
            sinks=sinks,
            k_scale=scales.k,
            v_scale=scales.v,
        )


def _shape(layer: RadixAttention) -> tuple[int, ...]:
    return layer.tp_q_head_num // layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim
