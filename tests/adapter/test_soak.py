# SPDX-License-Identifier: Apache-2.0
"""Slots recycled as fast as possible, with aborts, retractions, forks and evictions; then the KV of what the tree still
holds equals a fresh prefill's."""

from pathlib import Path
from typing import Any

import pytest
import toy
from schedulers import SERVER_ARGS, VTENSOR, run_scheduler

# Admission that forgets at once what running requests will still need, so that they are retracted.
RECKLESS = {"SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR": "0", "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "2"}


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
def test_kv_after_a_soak(tmp_path: Path, overlap: bool) -> None:
    model = toy.write_model(tmp_path / "model")
    settings: dict[str, Any] = {
        "server_args": SERVER_ARGS
        | VTENSOR
        | {"model_path": str(model), "max_total_tokens": 1100, "disable_overlap_schedule": not overlap},
        "environment": RECKLESS | {"VTENSOR_PAGE_BYTES": "4096"},
        "workload": {
            "kind": "soak",
            "seed": 5,
            "requests": 270,
            "at_once": 14,
            "new": 70,
            "longest": 420,
            "vocabulary": toy.VOCABULARY,
            "prefixes": 12,
        },
    }
    result = run_scheduler(tmp_path, settings)
    assert set(result["seen"]) == {"abort", "fork", "live fork", "new", "turn", "twin"}
    assert result["retractions"] > 0
    counters = result["vtensor"]["counters"]
    assert counters["nodes_evicted"] > 50
    assert counters["binds"] > 30 * SERVER_ARGS["max_running_requests"], "slots were not recycled"
    assert counters["tails_copied"] > 0
    assert counters["tails_extended"] > 0
    assert counters["tokens_matched"] > 5 * counters["binds"]
    assert min(counters["pages_aliased"], counters["pages_adopted"]) > 0
    assert result["kinds"]["fork"] > 10
    assert result["kinds"]["live fork"] > 10
    assert result["vtensor"]["leaks"] == 0
    assert len(result["prefixes"]) >= 5
    for prefix in result["prefixes"]:
        assert max(prefix["worst"]) < 1e-3, prefix
