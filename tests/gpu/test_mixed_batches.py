# SPDX-License-Identifier: Apache-2.0
"""On a GPU, with CUDA graphs and the overlap schedule: long prompts that arrive while others decode, prefilled in one
batch with these (`--enable-mixed-chunk`). What the model thinks of each token is what it thinks without mixing; and
nothing on the way reads SGLang's table of token indices, which holds rubbish."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ADAPTER_TESTS = Path(__file__).parent.parent / "adapter"
REQUESTS, NEW = 12, 150


def test_log_probabilities_are_those_without_mixing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both of what prefill may be done by; the bound is that of long generations without FlashAttention-3
    (test_long_generations.py)."""
    monkeypatch.syspath_prepend(str(ADAPTER_TESTS))
    import toy
    from logprobs import compare_noted
    from schedulers import run_scheduler

    model = toy.write_model(
        tmp_path / "model", dtype="bfloat16", layers=4, hidden=512, heads=16, kv_heads=4, head_dim=128
    )
    runs: dict[str, tuple[bool, str]] = {"separate": (False, "auto"), "mixed": (True, "triton")}
    if torch.cuda.get_device_capability()[0] == 9:
        runs["mixed, fa3"] = (True, "fa3")
    results: dict[str, dict[str, Any]] = {}
    for name, (mixed, kernel) in runs.items():
        folder = tmp_path / name.replace(", ", "-")
        folder.mkdir()
        settings = {
            "server_args": {
                "model_path": str(model),
                "device": "cuda",
                "dtype": "bfloat16",
                "radix_cache_backend": "vtensor",
                "sampling_backend": "pytorch",
                "grammar_backend": "none",
                "skip_tokenizer_init": True,
                "context_length": 4096,
                "max_running_requests": 16,
                "max_total_tokens": 60000,
                "chunked_prefill_size": 512,
                "cuda_graph_max_bs_decode": 16,
                "mem_fraction_static": 0.2,
                "random_seed": 1,
                "enable_mixed_chunk": mixed,
            },
            "environment": {"VTENSOR_PREFILL_KERNEL": kernel},
            "check_every": 20,
            "poison_index_table": mixed,
            "workload": {
                "kind": "generations",
                "seed": 4,
                "requests": REQUESTS,
                "new": NEW,
                "longest_prompt": 3000,
                "vocabulary": toy.VOCABULARY,
                "every": 15,
                "shares": False,
                "logprobs": False,
                "forced": True,
                "noted": True,
            },
        }
        results[name] = run_scheduler(folder, settings)
    print(f"\nbatches: { ({name: result['modes'] for name, result in results.items()}) }")
    separate = results.pop("separate")
    assert "MIXED" not in separate["modes"]
    report = {name: compare_noted(separate, result)._asdict() for name, result in results.items()}
    print(f"against separate batches: {json.dumps(report)}")
    for name, result in results.items():
        assert result["overlap"]
        assert result["modes"]["MIXED"] > 10, name
        assert result["vtensor"]["leaks"] == 0
        assert result["outputs"] == separate["outputs"]
        assert report[name]["tokens"] == REQUESTS * NEW
        assert report[name]["largest"] <= 0.2, (name, report)
        assert report[name]["mean"] <= 0.02, (name, report)
