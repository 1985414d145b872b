# SPDX-License-Identifier: Apache-2.0
"""Runs of a real scheduler, each in a process of its own, and the arguments that they have in common."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVER_ARGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "context_length": 1024,
    "max_running_requests": 8,
    "chunked_prefill_size": 64,
    "random_seed": 1,
}

STOCK = {"attention_backend": "torch_native", "disable_cuda_graph": True}
VTENSOR = {"radix_cache_backend": "vtensor"}


def run_scheduler(folder: Path, settings: dict[str, Any], timeout_s: float = 600) -> dict[str, Any]:
    """One run of scheduler_run.py in a process of its own; its result. AssertionError, with its log, if it failed."""
    settings_file, result_file = folder / "settings.json", folder / "result.json"
    settings_file.write_text(json.dumps(settings))
    script = Path(__file__).parent / "scheduler_run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(settings_file), str(result_file)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, f"the scheduler failed:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result
