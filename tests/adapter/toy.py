# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama for tests: seeded random weights of a scale at which attention decides the output."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY = 320


def write_model(
    folder: Path,
    *,
    layers: int = 3,
    seed: int = 0,
    hidden: int = 128,
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 16,
    dtype: str = "float32",
) -> Path:
    """Write config.json and weights. With 3 layers a token's KV has 768 bytes, which divides no page."""
    inner, dim = 2 * hidden, head_dim
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": dim,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": dtype,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
    }
    generator = torch.Generator().manual_seed(seed)

    def linear(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * gain / columns**0.5

    weights = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": linear(VOCABULARY, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "self_attn.q_proj.weight": linear(heads * dim, hidden, 1.5),
            prefix + "self_attn.k_proj.weight": linear(kv_heads * dim, hidden, 1.5),
            prefix + "self_attn.v_proj.weight": linear(kv_heads * dim, hidden, 2.0),
            prefix + "self_attn.o_proj.weight": linear(hidden, heads * dim, 2.0),
            prefix + "mlp.gate_proj.weight": linear(inner, hidden),
            prefix + "mlp.up_proj.weight": linear(inner, hidden),
            prefix + "mlp.down_proj.weight": linear(hidden, inner),
            prefix + "input_layernorm.weight": torch.ones(hidden),
            prefix + "post_attention_layernorm.weight": torch.ones(hidden),
        }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
