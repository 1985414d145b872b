# SPDX-License-Identifier: Apache-2.0
"""Models that would store K and V while they rotate them leave that to the attention backend.

SGLang's fused kernel stores NaN and infinity as they are; behind a request they reach others (fa3.py).
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

from vt_sglang.adapter.kv_pool import VTensorKVPool


def enable_fused_set_kv_buffer(original: Callable[[Any], bool], forward_batch: Any) -> bool:
    """AROUND `enable_fused_set_kv_buffer`, which models ask: never into virtual tensors."""
    return not isinstance(get_token_to_kv_pool(), VTensorKVPool) and original(forward_batch)
