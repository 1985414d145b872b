# SPDX-License-Identifier: Apache-2.0
"""A model's attention layers, and which of them cannot be served."""

from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from vt_sglang.adapter.head_dims import refused_head_dims

_SINKS = ("sinks", "attention_sink_bias")
"""What models call them."""


def attention_layers(model: torch.nn.Module) -> Iterator[RadixAttention]:
    """Every attention layer of a model."""
    return (layer for layer in model.modules() if isinstance(layer, RadixAttention))


def sinks_of_layers(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """The sinks, [heads], of the attention layers that have any, by layer_id. SGLang gives them to each call; a model
    keeps them beside the layer, in the module that calls it."""
    found: dict[int, torch.Tensor] = {}
    for module in model.modules():
        sinks = next((it for name in _SINKS if isinstance(it := getattr(module, name, None), torch.Tensor)), None)
        if sinks is not None:
            found |= {layer.layer_id: sinks for layer in module.children() if isinstance(layer, RadixAttention)}
    return found


def refuse_layers(
    model: torch.nn.Module,
    *,
    caps_logits: bool,
    takes_sinks: bool,
    least_head_dim: int = 1,
    most_head_dim: int | None = None,
) -> None:
    """ValueError that says what the model's attention layers need and the backend lacks.

    Args:
        caps_logits: whether the kernels can bound logits by tanh.
        takes_sinks: whether they can take attention sinks.
        least_head_dim, most_head_dim: elements of a head that they can take. None: any number.
    """
    refused = set()
    if not takes_sinks and sinks_of_layers(model):
        refused.add("attention sinks")
    for layer in attention_layers(model):
        # None, too, says that there is no cap: Gemma 2's, where its config has null.
        if (cap := layer.logit_cap) and (not caps_logits or cap < 0 or layer.logit_capping_method != "tanh"):
            refused.add(f"logits capped at {layer.logit_cap} by {layer.logit_capping_method}")
        if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
            refused.add("cross-attention or bidirectional attention")
        dims = layer.qk_head_dim, layer.v_head_dim
        refused.update(refused_head_dims(*dims, least=least_head_dim, most=most_head_dim))
        if layer.use_irope:
            refused.add("chunked attention")
        if layer.xai_temperature_len > 0:
            refused.add(f"logits scaled by position beyond {layer.xai_temperature_len} tokens")
        if layer.pos_encoding_mode != "NONE":
            refused.add(f"positions encoded in attention by {layer.pos_encoding_mode}")
        if layer.tp_q_head_num % layer.tp_k_head_num:
            refused.add(
                f"{layer.tp_q_head_num} query heads over {layer.tp_k_head_num} KV heads, which do not divide them"
            )
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
