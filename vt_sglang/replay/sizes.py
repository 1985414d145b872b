# SPDX-License-Identifier: Apache-2.0
"""Capacities, and the KV bytes of a token of well-known models."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_sglang.layout import KVLayout

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "fp8_e4m3": 1, "float32": 4}

# Layers, KV heads, head dim; from each model's config.json.
MODELS = {
    "llama-2-7b": (32, 32, 128),
    "llama-2-13b": (40, 40, 128),
    "llama-2-70b": (80, 8, 128),
    "llama-3-8b": (32, 8, 128),
    "llama-3-70b": (80, 8, 128),
    "llama-3-405b": (126, 8, 128),
    "llama-3.2-1b": (16, 8, 64),
    "llama-3.2-3b": (28, 8, 128),
    "mistral-7b": (32, 8, 128),
    "mixtral-8x7b": (32, 8, 128),
    "qwen2.5-7b": (28, 4, 128),
    "qwen2.5-14b": (48, 8, 128),
    "qwen2.5-32b": (64, 8, 128),
    "qwen2.5-72b": (80, 8, 128),
    "qwen3-0.6b": (28, 8, 128),
    "qwen3-4b": (36, 8, 128),
    "qwen3-8b": (36, 8, 128),
    "qwen3-14b": (40, 8, 128),
    "qwen3-32b": (64, 8, 128),
    "qwen3-30b-a3b": (48, 4, 128),
}

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class SizeError(ValueError):
    """A capacity or a model that makes no sense."""


@dataclass(frozen=True)
class Model:
    name: str
    token_bytes: int
    """KV bytes of one token, all layers."""


def parse_capacity(text: str, token_bytes: int) -> int:
    """Bytes of a capacity: `20GiB` or `20GB` are bytes; `200000`, `200k` and `0.2M` are tokens.

    Raises:
        SizeError: the text is neither.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:(?P<bytes>[kmgt]i?b|b)|(?P<tokens>[km]?))\s*", text, re.IGNORECASE)
    if found is None:
        raise SizeError(f"{text.strip()!r} is no capacity: write 20GiB for bytes, or 200000, 200k or 0.2M for tokens")
    number = float(found[1]) if "." in found[1] else int(found[1])
    if found["bytes"] is not None:
        unit = found["bytes"].lower().removesuffix("b")
        return int(number * (_UNITS | _BINARY_UNITS)[unit])
    return int(number * _UNITS[found["tokens"].lower()]) * token_bytes


LARGEST_BYTES = 2**56
"""Of a page, a token or a cache: 64 PiB, far more than there is and far less than overflows."""
MOST_TOKENS = 2**31 - 1
"""Of a block, or of what is recorded at a time: more than any prompt has."""


def model(name: str, kv_dtype: str) -> Model:
    """A model by name, or by its config.json or the folder of that.

    Raises:
        SizeError: there is no such model, or its KV cannot be reckoned.
    """
    itemsize = DTYPE_BYTES[kv_dtype]
    if geometry := MODELS.get(name.lower()):
        return Model(name.lower(), _token_bytes(*geometry, itemsize))
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise SizeError(
            f"{name!r} is neither a config.json, nor a folder that holds one, nor one of {', '.join(MODELS)}; or give "
            "--token-bytes"
        )
    return Model(str(name), _from_config(path, itemsize))


def _token_bytes(layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    return KVLayout(layers, kv_heads, head_dim, head_dim, itemsize).token_bytes


def _from_config(path: Path, itemsize: int) -> int:
    try:
        config = _object(json.loads(path.read_bytes()))
        config = _object(config.get("text_config", config))
        if config.get("kv_lora_rank"):
            raise ValueError("latent attention (MLA), whose KV this does not reckon")
        heads = _positive(config, "num_attention_heads")
        kv_heads = heads if config.get("num_key_value_heads") is None else _positive(config, "num_key_value_heads")
        own = config.get("head_dim") is not None
        head_dim = _positive(config, "head_dim") if own else _positive(config, "hidden_size") // heads
        token_bytes = _token_bytes(_positive(config, "num_hidden_layers"), kv_heads, head_dim, itemsize)
        if not token_bytes:
            raise ValueError(f"hidden_size is less than the {heads:,} num_attention_heads")
    except OSError as error:
        raise SizeError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SizeError(f"{path}: {error}; give --token-bytes") from None
    return token_bytes


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object, as a model's config.json is")
    return value


def _positive(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if value is None:
        raise ValueError(f"no {name}")
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {json.dumps(value)[:40]}, not a positive integer")
    return value
