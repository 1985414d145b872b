# SPDX-License-Identifier: Apache-2.0
"""The factors by which keys and values were divided before they were stored in float8."""

from typing import Any, NamedTuple

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.layers import attention_layers


class Scales(NamedTuple):
    """What a layer's stored keys and values are to be multiplied by: [1] float32 each; None: 1."""

    k: torch.Tensor | None
    v: torch.Tensor | None


class KVScales:
    """The scales of every layer, on the pool's device from the start: CUDA graphs keep their addresses.

    Where KV is in the model's own dtype there are none, even if the checkpoint brings some: SGLang scales nothing then.

    Args:
        pool: where K and V are.
        model: its weights are loaded. SGLang leaves a tensor in a layer, or a number (--quantization-param-path).

    Raises:
        ValueError: a layer has more than one scale for its keys, or for its values.
    """

    def __init__(self, pool: VTensorKVPool, model: torch.nn.Module) -> None:
        scaled = pool.dtype != pool.store_dtype
        self._scales = {
            layer: Scales(*(_on_device(it, pool.device) if scaled else None for it in (layer.k_scale, layer.v_scale)))
            for layer in attention_layers(model)
        }

    def of(self, layer: RadixAttention) -> Scales:
        """Those of a layer of the model."""
        return self._scales[layer]


def _on_device(scale: Any, device: str) -> torch.Tensor | None:
    """A view of the layer's own tensor where possible, so that weights that are loaded anew count."""
    if scale is None:
        return None
    tensor = torch.as_tensor(scale, dtype=torch.float32, device=device).detach()
    if tensor.numel() != 1:
        raise ValueError(
            f"this checkpoint has KV scales of shape {list(tensor.shape)}, and the attention backend vtensor takes one "
            "a layer: leave --kv-cache-dtype at auto, or --radix-cache-backend vtensor out"
        )
    return tensor.view(1)
