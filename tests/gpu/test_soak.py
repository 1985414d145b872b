# SPDX-License-Identifier: Apache-2.0
"""A scheduler on a GPU, with CUDA graphs and the overlap schedule, whose slots are recycled as fast as possible; then
the KV of what its tree still holds equals a fresh prefill's. VT_SOAK_SECONDS=n makes it long."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ADAPTER_TESTS = Path(__file__).parent.parent / "adapter"
SECONDS = int(os.environ.get("VT_SOAK_SECONDS", "15"))
SLOTS = 24


@pytest.mark.parametrize("kernel", ["auto", "triton"])
def test_kv_after_a_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Pages of 32 tokens, so that the tile of a request's last tokens reaches past its last page. For
    prompts as short as most of these, `auto` is FlashAttention-3."""
    monkeypatch.syspath_prepend(str(ADAPTER_TESTS))
    import toy
    from schedulers import run_scheduler

    if kernel != "triton" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashAttention-3 needs a Hopper GPU")
    size: dict[str, Any] = {"layers": 8, "hidden": 512, "heads": 16, "kv_heads": 16, "head_dim": 128}
    model = toy.write_model(tmp_path / "model", dtype="bfloat16", **size)
    settings = {
        "server_args": {
            "model_path": str(model),
            "device": "cuda",
            "dtype": "bfloat16",
            "radix_cache_backend": "vtensor",
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "skip_tokenizer_init": True,
            "context_length": 2048,
            "max_running_requests": SLOTS,
            "max_total_tokens": 6000,
            "chunked_prefill_size": 512,
            "cuda_graph_max_bs_decode": SLOTS,
            "mem_fraction_static": 0.2,
            "random_seed": 1,
        },
        "environment": {
            "SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR": "0",
            "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "2",
            "VTENSOR_PREFILL_KERNEL": kernel,
        },
        "core": {"copy_from_pages": 2},  # so that short prefixes are copied too
        "most_steps": 10**9,
        "check_every": 50,
        "workload": {
            "kind": "soak",
            "seed": 5,
            "seconds": SECONDS,
            "at_once": 2 * SLOTS,
            "new": 120,
            "longest": 1500,
            "vocabulary": toy.VOCABULARY,
            "prefixes": 30,
        },
    }
    result = run_scheduler(tmp_path, settings, timeout_s=SECONDS + 300)
    counters = result["vtensor"]["counters"]
    errors = [(max(it["worst"]), it["worst"][0], it["mean"], it["tokens"]) for it in result["prefixes"]]
    worst = [max(it) for it in zip(*errors, strict=True)]
    told = {name: result[name] for name in ("steps", "retractions", "overlap", "seen", "kinds")}
    print(f"\n{kernel}: {told}, {counters}, worst, first layer's worst, mean: {worst}")
    if path := os.environ.get("VT_SOAK_JSON"):
        kept = told | {"kernel": kernel, "seconds": SECONDS, "counters": counters, "prefixes": result["prefixes"]}
        Path(f"{path}.{kernel}.json").write_text(json.dumps(kept))
    assert result["overlap"]
    assert result["vtensor"]["leaks"] == 0
    assert result["retractions"] > 0
    assert counters["binds"] > 10 * SLOTS
    for name in ("nodes_evicted", "tails_copied", "tails_extended", "pages_adopted"):
        assert counters[name] > 0, name
    # Mappings change and contents move beside forwards, many a second.
    assert counters["pages_unmapped"] > 20 * SECONDS
    assert counters["pages_moved"] > 20 * SECONDS
    assert counters["pages_copied"] > 0
    assert counters["pages_mapped_ahead"] > 0
    # What was soaked is sharing: some 100 tokens a bind were found, on pages of others and of the slot's last request.
    assert counters["tokens_matched"] > 20 * counters["binds"]
    assert counters["tokens_evicted"] > counters["binds"]
    assert counters["pages_aliased"] > counters["binds"]
    assert set(result["kinds"]) == {"abort", "fork", "live fork", "new", "turn", "twin"}
    assert min(result["kinds"].values()) > 10, result["kinds"]
    assert len(errors) >= 10
    for worst, first, mean, tokens in errors:
        # K and V of the first layer depend on token and position alone; deeper ones on all that was attended to.
        assert first < 0.02, (first, tokens)
        assert mean < 0.05, (mean, tokens)
        assert worst < 0.1, (worst, tokens)
