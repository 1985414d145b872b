# SPDX-License-Identifier: Apache-2.0
"""A small Llama with seeded random weights, so that a comparison needs no download.

Random weights make a usable subject only when attention decides what is said. A weight matrix drawn with variance
`gain^2 / inputs` keeps activations at unit scale; queries and keys of gain g then give attention scores of standard
deviation g^2. At g = 1 attention is nearly uniform: one token of hundreds does not show in the answer. At g = 1.75 the
scores spread over several units, a query picks a few of thousands of keys, and one changed token far back changes the
greedy answer. Sharper attention would say nothing more, but would amplify rounding errors.
"""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vt_sglang.chat.files import write_whole

VOCABULARY = 320
HIDDEN = 256
INTERMEDIATE = 512
LAYERS = 4
QUERY_HEADS = 8
KV_HEADS = 2
HEAD_DIM = 32
ATTENTION_GAIN = 1.75

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

Weights = dict[str, npt.NDArray[np.float32]]


def config(seed: int) -> dict[str, object]:
    """The model's `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": QUERY_HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "weights_seed": seed,
    }


def weights(seed: int) -> Weights:
    """The model's parameters by name, float32; matrices are [outputs, inputs]."""
    generator = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int, gain: float = 1.0) -> npt.NDArray[np.float32]:
        drawn = generator.standard_normal((outputs, inputs), dtype=np.float32)
        return drawn * np.float32(gain / np.sqrt(inputs))

    ones = np.ones(HIDDEN, np.float32)
    tensors = {"model.embed_tokens.weight": generator.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32)}
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        tensors |= {
            layer + "input_layernorm.weight": ones,
            layer + "self_attn.q_proj.weight": matrix(QUERY_HEADS * HEAD_DIM, HIDDEN, ATTENTION_GAIN),
            layer + "self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, ATTENTION_GAIN),
            layer + "self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            layer + "self_attn.o_proj.weight": matrix(HIDDEN, QUERY_HEADS * HEAD_DIM),
            layer + "post_attention_layernorm.weight": ones,
            layer + "mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            layer + "mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            layer + "mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
    return tensors | {"model.norm.weight": ones, "lm_head.weight": matrix(VOCABULARY, HIDDEN)}


def ensure(folder: Path, seed: int = 0) -> bool:
    """Write the model into `folder`, unless the same model stands there complete. Returns whether it was written."""
    text = json.dumps(config(seed), indent=2) + "\n"
    if _complete(folder, text):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    # Weights of another seed must never stand beside this configuration, nor half of the weights beside any.
    (folder / CONFIG).unlink(missing_ok=True)
    write_whole(folder / WEIGHTS, _safetensors(weights(seed)))
    write_whole(folder / CONFIG, text.encode())
    return True


def _safetensors(tensors: Weights) -> bytes:
    """The file format: the header's length, a JSON header padded to 8 bytes, all data in the header's order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values())


def _complete(folder: Path, text: str) -> bool:
    """Whether the configuration is the wanted one and the weights have the length that their header tells."""
    try:
        if (folder / CONFIG).read_text() != text:
            return False
        with (folder / WEIGHTS).open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            data_bytes = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            return bool(os.fstat(file.fileno()).st_size == 8 + header_bytes + data_bytes)
    except (OSError, ValueError, KeyError):
        return False
