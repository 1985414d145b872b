# SPDX-License-Identifier: Apache-2.0
"""When there is no memory for pages that the budget allows: a request that cannot be served ends, and not the server.

SGLang takes for granted that a request fits where nothing else runs, because none longer than the pool is let into the
queue. Where memory is short that is not so: such a request would wait, and with it all behind it, for ever.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import NextBatchPlan
from sglang.srt.mem_cache.common import release_kv_cache

from vt_sglang.adapter.allocation import PrefillMemoryError
from vt_sglang.adapter.tree_cache import VTensorCache

logger = logging.getLogger(__name__)


def get_new_batch_prefill(original: Callable[..., Any], scheduler: Any, running_batch: Any) -> Any:
    """AROUND `Scheduler.get_new_batch_prefill`: give up the requests for which admission found no memory."""
    cache = scheduler.tree_cache
    if not isinstance(cache, VTensorCache):
        return original(scheduler, running_batch)
    if cache.elastic.step() and cache.metrics is not None:
        cache.metrics.changed()
    if running_batch.is_empty():
        running_batch.batch_is_full = False  # SGLang resets it only when a request of the batch ends
    cache.mixing = running_batch if scheduler.is_mixed_chunk and not running_batch.is_empty() else None
    try:
        plan = original(scheduler, running_batch)
    except PrefillMemoryError as error:
        plan = NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        for req in error.reqs:
            _give_up(scheduler, req, f"Out of memory: {error}", admitted=True)
    finally:
        cache.mixing = None
    for req in cache.hopeless:
        _give_up(scheduler, req, _no_room(cache, req), admitted=False)
    cache.hopeless.clear()
    _tell(cache)
    return plan


def _no_room(cache: VTensorCache, req: Any) -> str:
    """Why a request that may have all the memory there is cannot be served."""
    usage, tokens = cache.core.usage(), len(req.full_untruncated_fill_ids)
    if usage["limit_pages"] < usage["budget_pages"] - usage["withheld_pages"]:
        return (
            f"Out of memory: {tokens} tokens take more than the {usage['limit_pages']} pages that the KV cache is "
            f"limited to, of {usage['budget_pages']}. Raise the limit (vt-sglang memory), or send less"
        )
    return (
        f"Out of memory: the KV cache has room for {tokens} tokens only if {usage['withheld_pages']} pages are created "
        "for which there is no memory. Try again later"
    )


def _give_up(scheduler: Any, req: Any, message: str, *, admitted: bool) -> None:
    """End a request that is waiting, or waiting between chunks, with an error for its client.

    Args:
        admitted: it was let in already, and so locked.
    """
    cache = scheduler.tree_cache
    prepare_abort(req, message, HTTPStatus.SERVICE_UNAVAILABLE)
    if req.req_pool_idx is not None:
        release_kv_cache(req, cache, is_insert=False)
    elif admitted:
        cache.core.unlock(req.last_node)
    if req is scheduler.chunked_req:
        scheduler.chunked_req = None
    scheduler.waiting_queue = [it for it in scheduler.waiting_queue if it is not req]
    abort = AbortReq(rid=req.rid, finished_reason=req.finished_reason.to_json())
    scheduler.ipc_channels.send_to_tokenizer.send_output(abort, req)
    logger.warning("Request %s is given up. %s", req.rid, message)


def _tell(cache: VTensorCache) -> None:
    """Log when a shortage begins and when it ends."""
    withheld = cache.core.usage()["withheld_pages"]
    if (withheld > 0) == cache.short_of_memory:
        return
    cache.short_of_memory = withheld > 0
    if withheld:
        logger.warning(
            "There is no memory for another page of the KV cache: %d of %d pages are withheld until there is. Requests "
            "wait longer and may be retracted; end other processes, or lower --mem-fraction-static",
            withheld,
            cache.core.usage()["budget_pages"],
        )
    else:
        logger.info("There is memory for pages of the KV cache again")
