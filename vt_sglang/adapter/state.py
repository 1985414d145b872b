# SPDX-License-Identifier: Apache-2.0
"""What a server tells of its virtual tensors, and what it checks when it is idle."""

from collections.abc import Callable
from typing import Any

from vt_sglang.adapter.tree_cache import VTensorCache


def describe(cache: VTensorCache) -> dict[str, Any]:
    """Counters and usage, in plain types: `internal_states[0]["vtensor"]` of a server's /server_info."""
    core = cache.core
    return {
        "driver": core.driver,
        "page_bytes": core.page_bytes,
        "token_bytes": core.token_bytes,
        "physical_bytes": core.physical_bytes(),
        "leaks": cache.leaks,
        "counters": dict(core.counters()),
        "usage": dict(core.usage()),
    }


def add_to_internal_state(output: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER `Scheduler.get_internal_state`."""
    if isinstance(scheduler.tree_cache, VTensorCache):
        output.internal_state["vtensor"] = describe(scheduler.tree_cache)


def check_when_idle(original: Callable[..., None], checker: Any) -> None:
    """AROUND `SchedulerInvariantChecker._check_tree_cache`, which SGLang calls when no request is left."""
    original(checker)
    if isinstance(checker.tree_cache, VTensorCache):
        checker.tree_cache.check_idle()
