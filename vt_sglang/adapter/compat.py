# SPDX-License-Identifier: Apache-2.0
"""Is this the SGLang that the adapter was written for? Asked before anything of it is touched."""

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SUPPORTED_SGLANG = "0.5.17"

# Everything that is hooked or relied on, with the parameters it must have. SGLang's memory contract changes between
# releases, so that a changed signature means a changed contract.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "sglang.srt.server_args.ServerArgs.add_cli_args": ("parser",),
    "sglang.srt.server_args.ServerArgs.from_cli_args": ("args",),
    "sglang.srt.server_args.ServerArgs.__post_init__": ("self",),
    "sglang.srt.server_args.ServerArgs.describe_kv_events_publisher": ("self",),
    "sglang.srt.server_args.add_attention_backend_choices": ("choices",),
    "sglang.srt.layers.attention.attention_registry.register_attention_backend": ("name",),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.init_forward_metadata_out_graph": (
        "self",
        "forward_batch",
        "in_capture",
    ),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.init_forward_metadata_in_graph": (
        "self",
        "forward_batch",
    ),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.init_cuda_graph_state": (
        "self",
        "max_bs",
        "max_num_tokens",
    ),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.get_cuda_graph_seq_len_fill_value": ("self",),
    "sglang.srt.utils.common.support_triton": ("backend",),
    "sglang.srt.models.utils.enable_fused_set_kv_buffer": ("forward_batch",),
    "sglang.srt.mem_cache.registry.register_radix_cache_backend": ("name", "factory"),
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._init_pools": (
        "self",
        "sizes",
        "req_to_token_pool",
        "token_to_kv_pool_allocator",
    ),
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator.config_from_budget": (
        "self",
        "budget_bytes",
        "cap_tokens",
    ),
    "sglang.srt.mem_cache.allocation.alloc_for_extend": ("batch",),
    "sglang.srt.mem_cache.allocation.alloc_for_decode": ("batch", "token_per_req"),
    "sglang.srt.mem_cache.allocation.alloc_for_spec_decode": (
        "tree_cache",
        "req_to_token_pool",
        "reqs",
        "req_pool_indices",
        "cur_kv_lens",
        "cur_kv_lens_cpu",
        "nxt_kv_lens",
        "nxt_kv_lens_cpu",
        "num_needed_tokens",
        "batch",
    ),
    "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem": ("self", "selected_indices"),
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req": (
        "self",
        "req",
        "has_chunked_req",
        "truncation_align_size",
    ),
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_chunked_req": ("self", "req"),
    "sglang.srt.model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner.capture_prepare": (
        "self",
        "num_tokens",
    ),
    "sglang.srt.managers.scheduler.Scheduler.init_metrics_reporter": ("self", "tp_rank", "pp_rank", "dp_rank"),
    "sglang.srt.observability.metrics_collector.RadixCacheMetricsCollector.increment_eviction_num_tokens": (
        "self",
        "num_tokens",
    ),
    "sglang.srt.observability.metrics_collector.RadixCacheMetricsCollector.observe_eviction_duration": (
        "self",
        "duration_seconds",
    ),
    "sglang.srt.managers.scheduler.Scheduler.get_new_batch_prefill": ("self", "running_batch"),
    "sglang.srt.managers.scheduler.Scheduler.run_batch": ("self", "batch", "pp_proxy_tensors"),
    "sglang.srt.managers.scheduler.Scheduler.process_batch_result": ("self", "batch", "result"),
    "sglang.srt.managers.scheduler.Scheduler.get_internal_state": ("self", "recv_req"),
    "sglang.srt.managers.scheduler.Scheduler.set_internal_state": ("self", "recv_req"),
    "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker._check_tree_cache": ("self",),
    "sglang.srt.mem_cache.common.release_kv_cache": ("req", "tree_cache", "is_insert"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.match_prefix": ("self", "params"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.cache_finished_req": ("self", "req", "is_insert", "kwargs"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.cache_unfinished_req": ("self", "req", "kwargs"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evict": ("self", "params"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.inc_lock_ref": ("self", "node"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.dec_lock_ref": ("self", "node", "params"),
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._create_buffers": ("self",),
    "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.alloc": ("self", "reqs"),
    "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.free": ("self", "req"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.take_events": ("self",),
    "sglang.srt.disaggregation.kv_events.EventPublisherFactory.register_publisher": ("name", "ctor"),
    "sglang.srt.disaggregation.kv_events.ZmqEventPublisher._socket_setup": ("self",),
    "sglang.srt.disaggregation.kv_events.BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
    ),
    "sglang.srt.disaggregation.kv_events.BlockRemoved": ("block_hashes", "medium"),
    "sglang.srt.managers.schedule_batch.Req._refresh_fill_ids": ("self",),
    "sglang.srt.managers.schedule_batch.Req.init_next_round_input": ("self", "tree_cache", "cow_mamba"),
    "sglang.srt.disaggregation.utils.prepare_abort": ("req", "error_message", "status_code"),
}


class IncompatibleSGLangError(RuntimeError):
    """This SGLang is not one that the adapter can be plugged into."""


def check_version() -> None:
    """IncompatibleSGLangError unless the supported release of SGLang is installed. Imports nothing of it."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        raise IncompatibleSGLangError(
            f"SGLang is not installed; install it with: pip install sglang=={SUPPORTED_SGLANG}"
        ) from None
    if found.split("+")[0] != SUPPORTED_SGLANG:
        raise IncompatibleSGLangError(
            f"this release of vt-sglang is made for SGLang {SUPPORTED_SGLANG}, and {found} is installed; install the "
            f"one it is made for (pip install sglang=={SUPPORTED_SGLANG}), or a release of vt-sglang for {found}"
        )


def check_signatures(expected: dict[str, tuple[str, ...]] = SIGNATURES) -> None:
    """IncompatibleSGLangError, naming all that differ, unless every target exists with just these parameters."""
    wrong = []
    for path, parameters in expected.items():
        try:
            found = tuple(inspect.signature(_resolve(path)).parameters)
        except (ImportError, AttributeError) as error:
            wrong.append(f"{path} is missing ({error})")
            continue
        if found[:1] == ("cls",):  # shown only where another hook wraps a class method
            found = found[1:]
        if found != parameters:
            wrong.append(f"{path} takes ({', '.join(found)}), not ({', '.join(parameters)})")
    if wrong:
        raise IncompatibleSGLangError(
            f"the installed SGLang says it is {SUPPORTED_SGLANG} but is not as that release is: {'; '.join(wrong)}. "
            f"Another plug-in may have changed it (see SGLANG_PLUGINS), or it was patched: reinstall "
            f"sglang=={SUPPORTED_SGLANG}"
        )


def _resolve(path: str) -> Any:
    """The function at a dotted path, below the wrappers that other plug-ins' hooks put around it."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is not None and not ".".join(parts[:cut]).startswith(error.name):
                raise
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return inspect.unwrap(found)
    raise ImportError(f"no module along {path}")
