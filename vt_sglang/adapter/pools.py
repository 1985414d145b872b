# SPDX-License-Identifier: Apache-2.0
"""SGLang's three pools (request rows, KV buffers, allocator), all of them faces of one core."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.mem_cache.allocation_sizing import get_req_to_token_extra_context_len
from sglang.srt.mem_cache.kv_cache_configurator import _InitializedPools
from sglang.srt.runtime_context import get_parallel

from vt_sglang._core import KVCache, slot_bytes
from vt_sglang.adapter.allocator import VTensorAllocator
from vt_sglang.adapter.arguments import wanted
from vt_sglang.adapter.device import check_device
from vt_sglang.adapter.event_publisher import event_block_tokens
from vt_sglang.adapter.kv_dtype import refuse_kv_dtype
from vt_sglang.adapter.kv_pool import VTensorKVPool
from vt_sglang.adapter.rows import VTensorRows
from vt_sglang.config import VTensorConfig
from vt_sglang.layout import DEVICE_PAGE_BYTES, Geometry, KVLayout, host_page_bytes

logger = logging.getLogger(__name__)

# What x86-64 and arm64 Linux give a process, and what a GPU's driver was seen to reserve at once.
_HOST_ADDRESS_BYTES = 2**47
_CUDA_ADDRESS_BYTES = 2**46


def whole_pages(config: Any, configurator: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER `KVCacheConfigurator.config_from_budget`: count the tokens that whole pages hold."""
    if not wanted(configurator.server_args):
        return
    geometry = _geometry(configurator)
    pages = config.max_total_num_tokens * geometry.token_bytes // geometry.page_bytes
    if pages == 0:
        raise ValueError(
            f"a KV cache of {config.max_total_num_tokens} tokens is less than one page of {geometry.page_bytes} bytes "
            f"({geometry.tokens_in(1)} tokens): raise --max-total-tokens or --mem-fraction-static, or choose smaller "
            "pages with --vtensor-page-bytes"
        )
    config.max_total_num_tokens = geometry.tokens_in(pages)


def init_pools(
    original: Callable[..., Any],
    configurator: Any,
    *,
    sizes: Any,
    req_to_token_pool: Any,
    token_to_kv_pool_allocator: Any,
) -> Any:
    """AROUND `KVCacheConfigurator._init_pools`: the core, and the pools over it."""
    if not wanted(configurator.server_args):
        return original(
            configurator,
            sizes=sizes,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
    layout = _layout(configurator)
    geometry = _geometry(configurator)
    context = configurator.model_config.context_len + get_req_to_token_extra_context_len(configurator.server_args)
    slots = sizes.max_running_requests + 1  # slot 0 is SGLang's padding row
    driver = _driver(configurator)
    capability = torch.cuda.get_device_capability(configurator.gpu_id) if driver == "cuda" else None
    refuse_kv_dtype(configurator.kv_cache_dtype, (layout.head_dim, layout.v_head_dim), capability)
    _check_addresses(geometry, driver, slots, context)
    if driver == "cuda":
        arena_bytes = slots * slot_bytes(geometry.page_bytes, geometry.token_bytes, context)
        check_device(configurator.gpu_id, geometry.page_bytes, arena_bytes)
    core = KVCache(
        driver=driver,
        page_bytes=geometry.page_bytes,
        token_bytes=geometry.token_bytes,
        slots=slots,
        slot_tokens=context,
        budget_pages=-(-sizes.max_total_num_tokens * geometry.token_bytes // geometry.page_bytes),
        device=configurator.gpu_id,
        exportable_pages=VTensorConfig.from_environment().exportable_pages,
        block_tokens=event_block_tokens(configurator.server_args),
        move_pages=driver == "cuda",
        map_ahead=driver == "cuda" and VTensorConfig.from_environment().map_ahead,
    )
    check_mappings(core, context)
    if core.total_tokens != sizes.max_total_num_tokens:
        raise RuntimeError(f"the pages hold {core.total_tokens} tokens, SGLang counts {sizes.max_total_num_tokens}")
    logger.info(
        "Virtual tensors: %d of %d tokens, %.2f GiB of addresses; %d pages of %d KiB, %s driver, %.1f tokens a page.",
        slots - 1,
        context,
        core.slots * core.slot_bytes / 2**30,
        core.usage()["budget_pages"],
        core.page_bytes // 2**10,
        driver,
        core.page_bytes / core.token_bytes,
    )
    rows = VTensorRows(core, max_context_len=context, device=configurator.device)
    pool = VTensorKVPool(
        core,
        layout,
        dtype=configurator.kv_cache_dtype,
        device=configurator.device,
        start_layer=configurator.layer_info.start_layer,
        end_layer=configurator.layer_info.end_layer,
    )
    allocator = VTensorAllocator(core, dtype=configurator.kv_cache_dtype, device=configurator.device, kvcache=pool)
    return _InitializedPools(req_to_token_pool=rows, token_to_kv_pool=pool, token_to_kv_pool_allocator=allocator)


def _driver(configurator: Any) -> str:
    return "cuda" if configurator.device == "cuda" else "host"


def _layout(configurator: Any) -> KVLayout:
    model = configurator.model_config
    return KVLayout(
        layers=configurator.layer_info.num_effective_layers,
        kv_heads=model.get_num_kv_heads(get_parallel().attn_tp_size),
        head_dim=model.head_dim,
        v_head_dim=model.v_head_dim,
        itemsize=torch.empty((), dtype=configurator.kv_cache_dtype).element_size(),
    )


def _geometry(configurator: Any) -> Geometry:
    token_bytes = _layout(configurator).token_bytes
    page_bytes = VTensorConfig.from_environment().page_bytes
    if page_bytes is None:
        page_bytes = DEVICE_PAGE_BYTES if _driver(configurator) == "cuda" else host_page_bytes(token_bytes)
    return Geometry(page_bytes=page_bytes, token_bytes=token_bytes)


def check_mappings(core: KVCache, context: int) -> None:
    """ValueError unless the longest request can be mapped where nobody else is: it would wait for ever."""
    pages, mappable = Geometry(core.page_bytes, core.token_bytes).pages_for(context), core.mappable_pages()
    if pages > mappable:
        raise ValueError(
            f"a request of {context} tokens takes {pages} pages, and this system lets the process map {mappable}: take "
            "larger pages with --vtensor-page-bytes, lower --context-length, or raise vm.max_map_count (sysctl)"
        )


def _check_addresses(geometry: Geometry, driver: str, slots: int, context: int) -> None:
    """ValueError unless the virtual tensors fit into the address space and their tokens' indices into int32."""
    length = slot_bytes(geometry.page_bytes, geometry.token_bytes, context)
    limit = _CUDA_ADDRESS_BYTES if driver == "cuda" else _HOST_ADDRESS_BYTES
    advice = "lower --max-running-requests or --context-length"
    if length * slots > limit:
        raise ValueError(
            f"{slots - 1} virtual tensors of {context} tokens take {length * slots / 2**40:.1f} TiB of addresses, and "
            f"there are {limit / 2**40:.0f} TiB: {advice} (at this context length at most "
            f"{limit // length - 1} requests fit)"
        )
    slot_tokens = length // geometry.token_bytes
    # The tensor memory accelerator's rows are counted by int32 too (rows.py).
    if slot_tokens * slots >= 2**31:
        raise ValueError(
            f"{slots - 1} virtual tensors of {slot_tokens} tokens have more token indices than the int32 of SGLang's "
            f"request rows counts: {advice} (at this context length at most {(2**31 - 1) // slot_tokens - 1} requests "
            "fit)"
        )
