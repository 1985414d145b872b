# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, straight from its formula."""

import torch


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scaling: float,
    logit_cap: float = 0.0,
    window: int = -1,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of a request's last tokens.

    Args:
        query: [new, heads, head_dim], its last `new` tokens.
        keys, values: [length, kv_heads, head_dim].

    Returns:
        [new, heads, v_head_dim] float64.
    """
    new, heads, _ = query.shape
    length, kv_heads, _ = keys.shape
    k = keys.double().repeat_interleave(heads // kv_heads, 1)
    v = values.double().repeat_interleave(heads // kv_heads, 1)
    scores = torch.einsum("qhd,khd->hqk", query.double(), k) * scaling
    if logit_cap:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    positions = torch.arange(length - new, length)[:, None]
    columns = torch.arange(length)[None, :]
    hidden = columns > positions
    if window >= 0:
        hidden |= columns < positions - window
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, new, 1)], 2)
        v = torch.cat([v, torch.zeros_like(v[:1])])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
