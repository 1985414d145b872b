# SPDX-License-Identifier: Apache-2.0
"""Models leave it to the attention backend to store K and V in virtual tensors."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

MODELS = ("qwen3_moe", "sdar")
BATCH = SimpleNamespace(dcp_kv_mask=None)


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("name", MODELS)
def test_models_do_not_store_while_they_rotate(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As their modules see it, on what says that it is CUDA."""
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
    from sglang.srt.models import utils

    from vt_sglang.adapter.kv_pool import VTensorKVPool

    monkeypatch.setattr(utils, "_is_cuda", True)
    monkeypatch.setattr(utils, "is_prefill_context_parallel_enabled", lambda: False)
    asked = import_module(f"sglang.srt.models.{name}").enable_fused_set_kv_buffer
    ours = object.__new__(VTensorKVPool)
    ours.dtype = torch.bfloat16
    for pool, fused in (
        (ours, False),
        (SimpleNamespace(dtype=torch.bfloat16), True),
        (SimpleNamespace(dtype=torch.float16), False),
    ):
        with forward_context(ForwardContext(SimpleNamespace(token_to_kv_pool=pool))):
            assert asked(BATCH) is fused
