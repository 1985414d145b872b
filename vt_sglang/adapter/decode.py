# SPDX-License-Identifier: Apache-2.0
"""Decode attention on a GPU, over the virtual tensors themselves."""

from typing import Any

import numpy as np
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.kv_scales import KVScales
from vt_sglang.adapter.layers import attention_layers
from vt_sglang.adapter.sharing import Sharing
from vt_sglang.triton_kernels import decode_hopper
from vt_sglang.triton_kernels.decode import decode_attention
from vt_sglang.triton_kernels.decode_plan import DecodePlan, most_group


class TritonDecode:
    """Attention of one new token a request.

    Args:
        pool: where K and V are.
        model: its attention layers tell which shapes and windows there are; each gets a plan.
        share: read what requests share once for all of them.

    Raises:
        ValueError: the model has more query heads for a KV head than the kernel takes on this GPU.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module, *, share: bool) -> None:
        self._pool = pool
        device = torch.device(pool.device)
        self._scales = KVScales(pool, model)
        layers = list(attention_layers(model))
        for layer in layers:
            group = _group(layer)
            if not self._on_hopper(layer) and (most := most_group(device)) is not None and group > most:
                raise ValueError(
                    f"the model has {group} query heads for a KV head, and the project's decode kernel takes {most} at "
                    "most of such heads on this GPU: choose --vtensor-decode-kernel fa3"
                )
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._plans: dict[tuple[Any, ...], DecodePlan] = {}
        self._sharing: list[tuple[Sharing, float]] = []  # and the part of all layers that it is of
        for layer in layers:
            if _shape(layer) in self._plans:
                continue
            sharing = self._new_sharing(layer, device, multiprocessors) if share else None
            if sharing is not None:
                self._sharing.append((sharing, sum(_shape(it) == _shape(layer) for it in layers) / len(layers)))
            self._plans[_shape(layer)] = DecodePlan(
                max_batch=pool.core.slots,
                kv_heads=layer.tp_k_head_num,
                group=_group(layer),
                head_dim=layer.qk_head_dim,
                v_head_dim=layer.v_head_dim,
                itemsize=pool.store_dtype.itemsize,
                multiprocessors=multiprocessors,
                device=device,
                window=layer.sliding_window_size,
                config=decode_hopper.CONFIG if self._on_hopper(layer) else None,
                shared=sharing and sharing.tasks,
            )

    def _new_sharing(self, layer: RadixAttention, device: torch.device, multiprocessors: int) -> Sharing | None:
        heads, kv_heads = layer.tp_q_head_num, layer.tp_k_head_num
        if not Sharing.possible(heads=heads, kv_heads=kv_heads, window=layer.sliding_window_size):
            return None
        return Sharing(
            self._pool.core,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=layer.qk_head_dim,
            v_head_dim=layer.v_head_dim,
            itemsize=self._pool.store_dtype.itemsize,
            multiprocessors=multiprocessors,
            device=device,
            hopper=self._on_hopper(layer),
        )

    def _on_hopper(self, layer: RadixAttention) -> bool:
        """Whether the kernels for Hopper can read the layer."""
        plain = not layer.logit_cap and self._scales.of(layer) == (None, None)
        return plain and decode_hopper.can_read(*self._pool.slots_view(layer.layer_id), _group(layer))

    @property
    def shares(self) -> bool:
        """Whether any layer's requests may be read together."""
        return bool(self._sharing)

    def share(self, slots: np.ndarray) -> float:
        """Once a forward, on the host: plan what the batch reads together.

        Args:
            slots: [batch] int64, of the requests that are decoded.

        Returns:
            Tokens that need not be read for that, averaged over the layers.
        """
        return sum(sharing.update(slots) * part for sharing, part in self._sharing)

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
            logit_cap=layer.logit_cap or 0.0,
            sinks=sinks,
            k_scale=scales.k,
            v_scale=scales.v,
        )


def _group(layer: RadixAttention) -> int:
    """Query heads of a KV head."""
    return int(layer.tp_q_head_num // layer.tp_k_head_num)


def _shape(layer: RadixAttention) -> tuple[Any, ...]:
    sizes = (layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim)
    return (*sizes, layer.sliding_window_size, layer.logit_cap)
