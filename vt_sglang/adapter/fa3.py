# SPDX-License-Identifier: Apache-2.0
"""FlashAttention-3 over the virtual tensors: to it, they are a contiguous cache whose batch index is the slot.

It reads whole tiles of tokens, past the end of a request too, and weighs with 0 what it finds there. So the memory
behind each request has to be readable (`GUARD_TOKENS`), and what it holds has to be finite (store.py).
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.layers import attention_layers, sinks_of_layers

GUARD_TOKENS = 192
"""Tokens behind a request's last that may be read: as many as the largest of its tiles holds."""

_DTYPES = (torch.bfloat16, torch.float16)


class Fa3UnavailableError(RuntimeError):
    """FlashAttention-3 cannot serve this model here. The message says why."""


class _Fa3:
    """What prefill and decode share.

    Raises:
        Fa3UnavailableError: it is missing here, or was built without what a layer needs.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module) -> None:
        self._pool = pool
        self._attend = _load(torch.device(pool.device))
        if pool.dtype not in _DTYPES:
            raise Fa3UnavailableError(f"it reads bfloat16 and float16, and the KV cache is {pool.dtype}")
        probed, sinks = set(), sinks_of_layers(model)
        for layer in attention_layers(model):
            its = sinks.get(layer.layer_id)
            shape = (layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim)
            key = (*shape, layer.sliding_window_size, layer.logit_cap, None if its is None else its.dtype)
            if key not in probed:
                _probe(self._attend, layer, pool, its)
                probed.add(key)
        self._slots = self._lengths = self._starts = torch.empty(0, dtype=torch.int32)
        self._longest_new = self._longest = 0

    def forward(
        self, query: torch.Tensor, output: torch.Tensor, layer: RadixAttention, sinks: torch.Tensor | None
    ) -> None:
        """As the project's own kernels (prefill.py, decode.py): [tokens, heads, head_dim] in, the same written."""
        keys, values = self._pool.slots_view(layer.layer_id)
        # No further than the longest request: it is what the kernel reckons with when it divides its work.
        result = self._attend(
            query,
            keys[:, : self._longest],
            values[:, : self._longest],
            cache_seqlens=self._lengths,
            cache_batch_idx=self._slots,
            cu_seqlens_q=self._starts,
            max_seqlen_q=self._longest_new,
            out=output,
            **_options(layer, sinks),
        )
        if result.data_ptr() != output.data_ptr():
            output.copy_(result)


class Fa3Prefill(_Fa3):
    """Attention of several new tokens a request, behind a prefix or none."""

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward: lengths and places, in the kernel's dtype."""
        new = forward_batch.extend_seq_lens_cpu
        self._slots = forward_batch.req_pool_indices.int()
        self._lengths = forward_batch.seq_lens.int()
        self._starts = torch.zeros(len(new) + 1, dtype=torch.int32, device=self._lengths.device)
        torch.cumsum(forward_batch.extend_seq_lens, 0, dtype=torch.int32, out=self._starts[1:])
        self._longest_new = max(new)
        self._longest = max(map(sum, zip(new, forward_batch.extend_prefix_lens_cpu, strict=True)))


class Fa3Decode(_Fa3):
    """Attention of one new token a request."""

    def prepare(self, forward_batch: Any) -> None:
        """Once a forward, on the device alone, so that it may be captured in a CUDA graph."""
        self._slots = forward_batch.req_pool_indices.int()
        self._lengths = forward_batch.seq_lens.int()
        batch = self._lengths.shape[0]
        self._starts = torch.arange(batch + 1, dtype=torch.int32, device=self._lengths.device)
        self._longest_new, self._longest = 1, self._pool.core.slot_tokens


def _load(device: torch.device) -> Callable[..., torch.Tensor]:
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        raise Fa3UnavailableError(f"it is made for compute capability 9.0, and this GPU has {major}.{minor}")
    try:
        import_module("sgl_kernel.flash_attn")  # what SGLang falls back to; it says why it cannot be loaded
        from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache
    except Exception as error:
        raise Fa3UnavailableError(f"SGLang's kernels cannot be loaded: {_first_line(error)}") from error
    return flash_attn_with_kvcache  # type: ignore[no-any-return]


def _options(layer: RadixAttention, sinks: torch.Tensor | None) -> dict[str, Any]:
    window = layer.sliding_window_size
    options: dict[str, Any] = {
        "softmax_scale": layer.scaling,
        "causal": True,
        "window_size": (window, 0) if window >= 0 else (-1, -1),
        "softcap": layer.logit_cap or 0.0,
    }
    return options if sinks is None else options | {"sinks": sinks}


def _probe(
    attend: Callable[..., torch.Tensor], layer: RadixAttention, pool: VTensorKVPool, sinks: torch.Tensor | None
) -> None:
    """Attend once: which head sizes and dtypes a build has, and whether it takes sinks, only a call tells."""
    device, dtype = pool.device, pool.dtype
    query = torch.zeros(2, layer.tp_q_head_num, layer.qk_head_dim, dtype=dtype, device=device)
    keys = torch.zeros(1, 2, layer.tp_k_head_num, layer.qk_head_dim, dtype=dtype, device=device)
    values = torch.zeros(1, 2, layer.tp_v_head_num, layer.v_head_dim, dtype=dtype, device=device)
    try:
        attend(
            query,
            keys,
            values,
            cache_seqlens=torch.tensor([2], dtype=torch.int32, device=device),
            cache_batch_idx=torch.tensor([0], dtype=torch.int32, device=device),
            cu_seqlens_q=torch.tensor([0, 2], dtype=torch.int32, device=device),
            max_seqlen_q=2,
            **_options(layer, sinks),
        )
        torch.cuda.synchronize()
    except Exception as error:
        raise Fa3UnavailableError(
            f"it cannot attend with {layer.tp_q_head_num} heads of {layer.qk_head_dim} in {dtype}"
            f"{'' if sinks is None else f', with sinks in {sinks.dtype}'}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
