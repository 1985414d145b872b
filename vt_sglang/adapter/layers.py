# SPDX-License-Identifier: Apache-2.0
"""A model's attention layers, and which of them cannot be served."""

from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention


def attention_layers(model: torch.nn.Module) -> Iterator[RadixAttention]:
    """Every attention layer of a model."""
    return (layer for layer in model.modules() if isinstance(layer, RadixAttention))


def refuse_layers(model: torch.nn.Module, *, caps_logits: bool, most_head_dim: int | None = None) -> None:
    """ValueError that says what the model's attention layers need and the backend lacks.

    Args:
        caps_logits: whether the kernels can bound logits by tanh.
        most_head_dim: elements of a head that the kernels can take. None: any number.
    """
    refused = set()
    for layer in attention_layers(model):
        if layer.logit_cap and (not caps_logits or layer.logit_capping_method != "tanh"):
            refused.add(f"logits capped at {layer.logit_cap} by {layer.logit_capping_method}")
        if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
            refused.add("cross-attention or bidirectional attention")
        head_dim = max(layer.qk_head_dim, layer.v_head_dim)
        if most_head_dim is not None and head_dim > most_head_dim:
            refused.add(f"heads of {head_dim} elements, of which {most_head_dim} are the most")
        if layer.use_irope:
            refused.add("chunked attention")
    if refused:
        raise ValueError(
            f"this model needs what the attention backend vtensor does not do here: {', '.join(sorted(refused))}; "
            "leave --radix-cache-backend vtensor out"
        )


def refuse_arguments(arguments: dict[str, Any]) -> None:
    """NotImplementedError for an argument of an attention call that the backend knows nothing of."""
    wanted = sorted(name for name, value in arguments.items() if value is not None)
    if wanted:
        raise NotImplementedError(f"the attention backend vtensor does not take {', '.join(wanted)}")
