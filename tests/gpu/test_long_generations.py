# SPDX-License-Identifier: Apache-2.0
"""Log probabilities over long generations on a GPU, with CUDA graphs: within bfloat16's rounding of stock SGLang's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ADAPTER_TESTS = Path(__file__).parent.parent / "adapter"


def test_log_probabilities_are_near_stocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of the project's choices of kernels, with shared prefixes read once and without, and stock's own two as the
    measure of what rounding does."""
    monkeypatch.syspath_prepend(str(ADAPTER_TESTS))
    import toy
    from logprobs import compare
    from schedulers import run_scheduler

    hopper = torch.cuda.get_device_capability()[0] == 9
    model = toy.write_model(
        tmp_path / "model", dtype="bfloat16", layers=4, hidden=512, heads=16, kv_heads=4, head_dim=128
    )
    vtensor = {"radix_cache_backend": "vtensor"}
    runs: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "stock triton": ({"attention_backend": "triton"}, {"SGLANG_PLUGINS": ","}),
        "vtensor triton": (vtensor, {"VTENSOR_PREFILL_KERNEL": "triton"}),
        "vtensor triton, each for itself": (
            vtensor,
            {"VTENSOR_PREFILL_KERNEL": "triton", "VTENSOR_SHARED_DECODE": "off"},
        ),
    }
    if hopper:
        runs["stock fa3"] = ({"attention_backend": "fa3"}, {"SGLANG_PLUGINS": ","})
        runs["vtensor fa3"] = (vtensor, {"VTENSOR_PREFILL_KERNEL": "fa3", "VTENSOR_DECODE_KERNEL": "fa3"})
    results = {}
    for name, (arguments, environment) in runs.items():
        folder = tmp_path / name.replace(", ", " ").replace(" ", "-")
        folder.mkdir()
        settings = {
            "server_args": {
                "model_path": str(model),
                "device": "cuda",
                "dtype": "bfloat16",
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
            }
            | arguments,
            "environment": environment,
            "workload": {
                "kind": "generations",
                "forced": True,
                "seed": 3,
                "requests": 16,
                "new": 1000,
                "longest_prompt": 1500,
                "vocabulary": toy.VOCABULARY,
            },
        }
        results[name] = run_scheduler(folder, settings)
    saved = {
        name: result["vtensor"]["tally"]["decode_saved_tokens"] for name, result in results.items() if "vtensor" in name
    }
    print(f"\ntokens that decode did not read: {saved}")
    assert saved.pop("vtensor triton") > 1_000_000
    assert not any(saved.values())
    expected = results.pop("stock triton")
    report = {name: compare(expected, result)._asdict() for name, result in results.items()}
    print(f"\nagainst stock triton: {json.dumps(report)}")
    # Two kernels round differently, stock's own as well.
    bound = 2 * report["stock fa3"]["largest"] if hopper else 0.2
    for name, difference in report.items():
        assert (difference["tokens"], difference["parted"]) == (16 * 1000, 0), (name, report)
        assert difference["largest"] <= bound, (name, report)
