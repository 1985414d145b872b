# SPDX-License-Identifier: Apache-2.0
"""Mixed batches on a GPU: the requests that decode beside a prefill read once what they share."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ADAPTER_TESTS = Path(__file__).parent.parent / "adapter"


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_a_server_saves_in_mixed_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    """Prompts that share beginnings come in chunks, beside requests that decode already: what the latter share is read
    once there too, and counted."""
    monkeypatch.syspath_prepend(str(ADAPTER_TESTS))
    import toy
    from schedulers import run_scheduler

    model = toy.write_model(
        tmp_path / "model", dtype="bfloat16", layers=2, hidden=512, heads=16, kv_heads=4, head_dim=128
    )
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
            "chunked_prefill_size": 256,
            "enable_mixed_chunk": True,
            "cuda_graph_max_bs_decode": 16,
            "mem_fraction_static": 0.2,
            "random_seed": 1,
            "radix_cache_backend": "vtensor",
        },
        "environment": {"VTENSOR_PREFILL_KERNEL": kernels},
        "least_mixed_bytes": 2**19,
        "workload": {
            "kind": "generations",
            "forced": True,
            "logprobs": False,
            "seed": 3,
            "requests": 16,
            "new": 100,
            "longest_prompt": 1500,
            "vocabulary": toy.VOCABULARY,
        },
    }
    result = run_scheduler(tmp_path, settings)
    assert [len(output) for output in result["outputs"].values()] == [100] * 16
    saved = result["vtensor"]["tally"]["decode_saved_tokens"]
    print(f"\ntokens that decode did not read: {saved}, of these in mixed batches: {result['mixed_saved_tokens']}")
    assert 0 < result["mixed_saved_tokens"] < saved
