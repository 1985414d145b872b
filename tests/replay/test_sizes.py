# SPDX-License-Identifier: Apache-2.0
"""Capacities and models."""

import json
from pathlib import Path

import pytest

from vt_sglang.replay import sizes
from vt_sglang.replay.sizes import SizeError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20GiB", 20 * 2**30),
        ("20GB", 20 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("512b", 512),
        ("200000", 200_000 * 7),
        (" 200k ", 200_000 * 7),
        ("0.2M", 200_000 * 7),
    ],
)
def test_capacities(text: str, expected: int) -> None:
    assert sizes.parse_capacity(text, 7) == expected


@pytest.mark.parametrize("text", ["", "20G", "-5", "1e6", "GiB", "20 tokens", "0.2.1M", "²"])
def test_no_capacities(text: str) -> None:
    with pytest.raises(SizeError, match="is no capacity: write 20GiB for bytes, or 200000"):
        sizes.parse_capacity(text, 7)


def test_models_by_name() -> None:
    assert sizes.model("llama-3-8b", "bfloat16").token_bytes == 128 * 1024
    assert sizes.model("Llama-3-8B", "fp8_e4m3").token_bytes == 64 * 1024
    assert sizes.model("llama-2-7b", "bfloat16").token_bytes == 512 * 1024


def test_models_by_config(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 64, "num_key_value_heads": 4}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert sizes.model(str(tmp_path), "bfloat16").token_bytes == 2 * 4 * 8 * 2 * 2
    path.write_text(json.dumps({"text_config": config | {"head_dim": 16, "num_key_value_heads": None}}))
    assert sizes.model(str(path), "bfloat16").token_bytes == 2 * 8 * 16 * 2 * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ("{}", "no num_attention_heads"),
        ('{"kv_lora_rank": 512}', "latent attention"),
        (
            '{"num_hidden_layers": 0, "num_attention_heads": 1, "hidden_size": 8}',
            "num_hidden_layers is 0, not a positive",
        ),
        ('{"num_hidden_layers": "x", "num_attention_heads": 1, "hidden_size": 8}', 'num_hidden_layers is "x", not'),
        ('{"num_hidden_layers": 2, "num_attention_heads": 0, "hidden_size": 8}', "num_attention_heads is 0, not"),
        ('{"num_hidden_layers": 2, "num_attention_heads": 9, "hidden_size": 8}', "hidden_size is less than the 9"),
    ],
)
def test_no_models_by_config(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SizeError, match=reason):
        sizes.model(str(tmp_path), "bfloat16")


def test_an_unknown_model(tmp_path: Path) -> None:
    for name in ("llama-99", str(tmp_path)):
        with pytest.raises(SizeError, match="is neither a config"):
            sizes.model(name, "bfloat16")
