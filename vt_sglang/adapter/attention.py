# SPDX-License-Identifier: Apache-2.0
"""SGLang's attention backend `vtensor`, and what it is without a GPU: torch's scaled dot-product attention on each
request's contiguous KV, one call a request. No gather, no index tensor, no copy of K or V but where they are kept in
another dtype than the queries' (float8).

    out_i = sum_{j <= i} softmax_j(scaling * q_i . k_j) v_j
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.utils.common import is_cpu
from torch.nn.functional import scaled_dot_product_attention

from vt_sglang.adapter.kv_pool import as_vtensor_pool
from vt_sglang.adapter.kv_scales import KVScales
from vt_sglang.adapter.layers import refuse_arguments, refuse_layers
from vt_sglang.adapter.plugin import BACKEND

# Elements of a mask that is made at a time; more queries are taken in blocks.
_MASK_ELEMENTS = 2**22


def create_attention(model_runner: Any) -> AttentionBackend:
    """The backend for the device that SGLang runs on."""
    if is_cpu():
        return TorchAttention(model_runner)
    from vt_sglang.adapter.gpu_attention import GpuAttention

    return GpuAttention(model_runner)


class TorchAttention(AttentionBackend):
    """One call of torch's attention a request."""

    needs_cpu_seq_lens = True

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.pool = as_vtensor_pool(model_runner.token_to_kv_pool)
        refuse_layers(model_runner.model, caps_logits=False, takes_sinks=False)
        self._scales = KVScales(self.pool, model_runner.model)
        self._slots: list[int] = []
        self._prefixes: list[int] = []
        self._lengths: list[int] = []

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Read, once a forward, where each request's tokens are."""
        mode = forward_batch.forward_mode
        self._slots = forward_batch.req_pool_indices.tolist()
        self._lengths = forward_batch.seq_lens.tolist()
        if mode.is_decode_or_idle():
            self._prefixes = [length - 1 for length in self._lengths]
        else:
            # Neither lengths nor prefixes are the scheduler's: in a mixed batch it may be a token ahead.
            new = forward_batch.extend_seq_lens_cpu
            self._prefixes = [length - count for length, count in zip(self._lengths, new, strict=True)]

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        _forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Queries of the new tokens against each request's KV [0, length).

        Args:
            q: [tokens, heads * head_dim], the requests' new tokens one after the other.
            k, v: [tokens, kv_heads * head_dim] of the same tokens, or None where they are stored already.

        Returns:
            [tokens, heads * v_head_dim].
        """
        refuse_arguments(kwargs)
        return self._forward(q, k, v, layer, save_kv_cache)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        _forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `forward_extend`, with one new token a request."""
        refuse_arguments(kwargs)
        return self._forward(q, k, v, layer, save_kv_cache)

    def support_triton(self) -> bool:
        """SGLang's Triton kernels have nothing to run on."""
        return False

    def _forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: RadixAttention, save_kv_cache: bool
    ) -> torch.Tensor:
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = q.new_empty((query.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        scales = self._scales.of(layer)
        scaling = layer.scaling if scales.k is None else layer.scaling * scales.k.item()
        store = save_kv_cache and k is not None and v is not None
        if store:
            k = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)
            v = v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)
            k = k if scales.k is None else k / scales.k
            v = v if scales.v is None else v / scales.v
        first = 0
        for slot, prefix, length in zip(self._slots, self._prefixes, self._lengths, strict=True):
            last = first + length - prefix
            keys, values = self.pool.slot_view(layer.layer_id, slot, length)
            if store:
                keys[prefix:] = k[first:last]
                values[prefix:] = v[first:last]
            _attend(query[first:last], keys, values, output[first:last], scaling, layer.sliding_window_size)
            first = last
        if scales.v is not None:
            output *= scales.v.item()
        return output.view(-1, layer.tp_q_head_num * layer.v_head_dim)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    scaling: float,
    window: int,
) -> None:
    """Causal attention of one request's last tokens over all its KV.

    Args:
        query: [new, heads, head_dim]; the last `new` of the request's tokens.
        keys, values: [length, kv_heads, head_dim]: the virtual tensor itself.
        output: [new, heads, v_head_dim], written.
        window: how many tokens back a query sees beside its own; negative: all.
    """
    new, heads, head_dim = query.shape
    if keys.dtype != query.dtype:
        unseen = max(0, keys.shape[0] - new - window) if window >= 0 else 0
        keys, values = keys[unseen:].to(query.dtype), values[unseen:].to(query.dtype)
    length, kv_heads, _ = keys.shape
    # Each KV head is an element of the batch, and its group of query heads see it through a stride of 0: torch's own
    # enable_gqa would repeat K and V in memory.
    group = heads // kv_heads
    grouped = query.view(new, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    out = output.view(new, kv_heads, group, -1).permute(1, 2, 0, 3)
    k = keys.permute(1, 0, 2).unsqueeze(1).expand(-1, group, -1, -1)
    v = values.permute(1, 0, 2).unsqueeze(1).expand(-1, group, -1, -1)
    if window < 0 and new in (1, length):
        out.copy_(scaled_dot_product_attention(grouped, k, v, is_causal=new > 1, scale=scaling))
        return
    rows = max(1, _MASK_ELEMENTS // length)
    for start in range(0, new, rows):
        end = min(start + rows, new)
        seen = length - new + end  # no query of this block sees further
        positions = torch.arange(length - new + start, seen, device=query.device).unsqueeze(1)
        columns = torch.arange(seen, device=query.device)
        mask = columns <= positions
        if window >= 0:
            mask &= columns >= positions - window
        out[:, :, start:end] = scaled_dot_product_attention(
            grouped[:, :, start:end], k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scaling
        )


def support_triton(original: Callable[[str], bool], backend: str) -> bool:
    """AROUND `support_triton`: whether SGLang may use its Triton kernels beside an attention backend, by its name."""
    return not is_cpu() if backend == BACKEND else bool(original(backend))
