# SPDX-License-Identifier: Apache-2.0
"""A model with sliding windows, most of its layers seeing only the last few tokens, gives what it gives on stock."""

from pathlib import Path

import pytest
from schedulers import SERVER_ARGS, STOCK, VTENSOR, run_scheduler

WINDOW = 24


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A tiny Gemma 3 whose weights are large enough for its answers to differ."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        vocab_size=320,
        max_position_embeddings=1024,
        sliding_window=WINDOW,
        initializer_range=0.1,
    )
    assert config.layer_types.count("sliding_attention") == 5
    torch.manual_seed(0)
    folder = tmp_path / "gemma"
    Gemma3ForCausalLM(config).float().save_pretrained(folder)
    return folder


def test_outputs_equal_stock(gemma: Path, tmp_path: Path) -> None:
    args = SERVER_ARGS | {"model_path": str(gemma), "max_total_tokens": 20000}
    workload = {"seed": 3, "at_once": 4, "longest": 200, "aborts": False, "flush": False}
    workload |= {"conversations": 2, "turns": 2, "new": 12}
    outputs = []
    for name, server in (("stock", STOCK), ("vtensor", VTENSOR)):
        (tmp_path / name).mkdir()
        result = run_scheduler(tmp_path / name, {"server_args": args | server, "workload": workload})
        outputs.append(result["outputs"])
    assert outputs[1] == outputs[0]
    assert len({tuple(ids) for ids in outputs[0].values()}) > 5, "the model says nothing that could differ"
    assert result["vtensor"]["counters"]["pages_aliased"] > 0
