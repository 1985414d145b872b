# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""What SGLang needs on a machine without a GPU; before it is imported."""

os.environ.update(CPU_ENVIRONMENT)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens divide no page."""
    from toy import write_model

    return write_model(tmp_path_factory.mktemp("model"))


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


def run_scheduler(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One run of scheduler_run.py in a process of its own; its result. AssertionError, with its log, if it failed."""
    settings_file, result_file = folder / "settings.json", folder / "result.json"
    settings_file.write_text(json.dumps(settings))
    script = Path(__file__).parent / "scheduler_run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(settings_file), str(result_file)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, f"the scheduler failed:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


@pytest.fixture(scope="session")
def plugged() -> None:
    """SGLang in this process, with the plug-in loaded as its launcher loads it."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
