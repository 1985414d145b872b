# SPDX-License-Identifier: Apache-2.0
"""Sharing that begins while requests run, in a real scheduler: what its batches' plans would save. (Without a GPU no
kernel reads a plan; tests/gpu shows that what is planned is read so.)"""

from pathlib import Path
from typing import Any

import pytest
import toy
from schedulers import SERVER_ARGS, VTENSOR, run_scheduler

PROMPT, SAMPLES, OUTPUTS = 300, 4, 30


@pytest.mark.parametrize("server_args", [{}, {"disable_overlap_schedule": True, "enable_mixed_chunk": True}])
def test_samples_and_forks_share(server_args: dict[str, Any], tmp_path: Path) -> None:
    model = toy.write_model(tmp_path / "model")
    settings = {
        "server_args": SERVER_ARGS | VTENSOR | {"model_path": str(model), "max_total_tokens": 20000} | server_args,
        "environment": {"VTENSOR_PAGE_BYTES": "4096"},
        "workload": {
            "kind": "branches",
            "seed": 5,
            "prompt": PROMPT,
            "samples": SAMPLES,
            "outputs": OUTPUTS,
            "vocabulary": toy.VOCABULARY,
        },
    }
    result = run_scheduler(tmp_path, settings)
    # Samples share their whole prompt from the first token that they generate on.
    assert max(result["saved"]["samples"]) == (SAMPLES - 1) * PROMPT
    # A fork shares the prompt with the live request, which records what it generates at its end; forks share what it
    # had generated, too.
    forks = result["saved"]["forks of a live request"]
    assert forks[0] == 0
    assert PROMPT in forks
    assert max(forks) == 2 * PROMPT + OUTPUTS
    assert result["vtensor"]["leaks"] == 0
