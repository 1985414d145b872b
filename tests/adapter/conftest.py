# SPDX-License-Identifier: Apache-2.0
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""What SGLang needs on a machine without a GPU; before it is imported."""

os.environ.update(CPU_ENVIRONMENT)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens divide no page: a token's KV has 768 bytes. Most of a run is spent in its layers: two."""
    from toy import write_model

    return write_model(tmp_path_factory.mktemp("model"), layers=2, hidden=96, heads=6, kv_heads=3)


@pytest.fixture(scope="session")
def plugged() -> None:
    """SGLang in this process, with the plug-in loaded as its launcher loads it."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
