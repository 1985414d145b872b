# SPDX-License-Identifier: Apache-2.0
"""Decode by FlashAttention-3 over pages, as SGLang calls it: how the work is shared out is computed once a forward."""

from collections.abc import Callable, Sequence

import torch
from sgl_kernel.flash_attn import get_scheduler_metadata
from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache


def paged_decode(
    q: torch.Tensor,
    buffers: Sequence[Sequence[torch.Tensor]],
    table: torch.Tensor,
    lengths: torch.Tensor,
    longest: int,
) -> Callable[[int], torch.Tensor]:
    """Attention of one new token a request, layer by layer.

    Args:
        q: [batch, heads, head_dim].
        buffers: of each layer K and V, [pages, page tokens, kv_heads, head_dim].
        table: [batch, pages of the longest request] int32.
        lengths: [batch] int32, in tokens.
        longest: of the lengths.
    """
    batch, heads, head_dim = q.shape
    _, page, kv_heads, _ = buffers[0][0].shape
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    schedule = get_scheduler_metadata(
        batch_size=batch,
        max_seqlen_q=1,
        max_seqlen_k=longest,
        num_heads=heads,
        num_heads_k=kv_heads,
        headdim=head_dim,
        cache_seqlens=lengths,
        qkv_dtype=q.dtype,
        cu_seqlens_q=cu_seqlens,
        page_size=page,
        causal=True,
    )

    def run(index: int) -> torch.Tensor:
        k, v = buffers[index]
        return flash_attn_with_kvcache(
            q,
            k,
            v,
            cache_seqlens=lengths,
            page_table=table,
            cu_seqlens_q=cu_seqlens,
            max_seqlen_q=1,
            softmax_scale=head_dim**-0.5,
            causal=True,
            scheduler_metadata=schedule,
        )

    return run
