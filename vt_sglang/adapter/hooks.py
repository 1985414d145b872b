# SPDX-License-Identifier: Apache-2.0
"""Where the adapter is tied into SGLang: one table, registered through SGLang's own hook registry.

Every hook passes a call on untouched unless the server runs on virtual tensors.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.mem_cache.registry import register_radix_cache_backend
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.server_args import add_attention_backend_choices

from vt_sglang.adapter import (
    admission,
    allocation,
    arguments,
    dummy,
    forwards,
    fused_store,
    metrics,
    pools,
    shortage,
    state,
)
from vt_sglang.adapter.attention import create_attention, support_triton
from vt_sglang.adapter.event_publisher import describe_publisher, register_publisher
from vt_sglang.adapter.plugin import BACKEND
from vt_sglang.adapter.tree_cache import build_tree_cache

_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_PREFILL_RUNNER = "sglang.srt.model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner"
_CHECKER = "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker"

_HOOKS: dict[str, tuple[HookType, Callable[..., Any]]] = {
    "sglang.srt.server_args.ServerArgs.add_cli_args": (HookType.AFTER, arguments.add_flags),
    "sglang.srt.server_args.ServerArgs.from_cli_args": (HookType.AROUND, arguments.read_flags),
    "sglang.srt.server_args.ServerArgs.__post_init__": (HookType.AROUND, arguments.resolve),
    "sglang.srt.server_args.ServerArgs.describe_kv_events_publisher": (HookType.AFTER, describe_publisher),
    "sglang.srt.utils.common.support_triton": (HookType.AROUND, support_triton),
    "sglang.srt.models.utils.enable_fused_set_kv_buffer": (HookType.AROUND, fused_store.enable_fused_set_kv_buffer),
    f"{_CONFIGURATOR}.config_from_budget": (HookType.AFTER, pools.whole_pages),
    f"{_CONFIGURATOR}._init_pools": (HookType.AROUND, pools.init_pools),
    "sglang.srt.mem_cache.allocation.alloc_for_extend": (HookType.AROUND, allocation.alloc_for_extend),
    "sglang.srt.mem_cache.allocation.alloc_for_decode": (HookType.AROUND, allocation.alloc_for_decode),
    "sglang.srt.mem_cache.allocation.alloc_for_spec_decode": (HookType.AROUND, allocation.alloc_for_spec_decode),
    "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem": (
        HookType.AROUND,
        allocation.check_decode_mem,
    ),
    "sglang.srt.managers.schedule_policy.PrefillAdder": (HookType.REPLACE, admission.VTensorPrefillAdder),
    f"{_SCHEDULER}.init_metrics_reporter": (HookType.AFTER, metrics.start),
    f"{_SCHEDULER}.get_new_batch_prefill": (HookType.AROUND, shortage.get_new_batch_prefill),
    f"{_SCHEDULER}.run_batch": (HookType.AROUND, forwards.run_batch),
    f"{_SCHEDULER}.process_batch_result": (HookType.AROUND, forwards.process_batch_result),
    f"{_SCHEDULER}.get_internal_state": (HookType.AFTER, state.add_to_internal_state),
    f"{_SCHEDULER}.set_internal_state": (HookType.AROUND, state.set_internal_state),
    f"{_PREFILL_RUNNER}.capture_prepare": (HookType.AFTER, dummy.mark),
    f"{_CHECKER}._check_tree_cache": (HookType.AROUND, state.check_when_idle),
}


def register() -> None:
    """Register the backends and every hook; SGLang applies the hooks once all plug-ins are loaded."""
    register_radix_cache_backend(BACKEND, build_tree_cache)
    register_attention_backend(BACKEND)(create_attention)
    add_attention_backend_choices([BACKEND])
    register_publisher()
    for target, (kind, hook) in _HOOKS.items():
        HookRegistry.register(target, hook, kind)


def verify() -> None:
    """RuntimeError unless every hook was applied: SGLang only logs one that could not be."""
    missing = [target for target in _HOOKS if target not in HookRegistry._patched]
    if missing:
        raise RuntimeError(
            f"vt-sglang cannot be used: SGLang did not apply its hooks on {', '.join(missing)}; its log says why. "
            f"Set SGLANG_PLUGINS=vtensor to see whether another plug-in is in the way"
        )
