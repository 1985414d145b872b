# SPDX-License-Identifier: Apache-2.0
"""What a server tells of its virtual tensors and may be told, and what it checks when it is idle."""

import logging
from collections.abc import Callable
from hashlib import blake2b
from secrets import token_bytes
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReqOutput

from vt_sglang.adapter.forwards import finish_forwards
from vt_sglang.adapter.pages import pages_by_state
from vt_sglang.adapter.tree_cache import VTensorCache
from vt_sglang.config import MEMORY_LIMIT

logger = logging.getLogger(__name__)

BUSIEST = 10
"""Prefixes told of."""

_KEY = token_bytes(32)


def describe(cache: VTensorCache) -> dict[str, Any]:
    """Counters and usage, in plain types: `internal_states[0]["vtensor"]` of a server's /server_info."""
    core = cache.core
    usage = core.usage()
    return {
        "driver": core.driver,
        "page_bytes": core.page_bytes,
        "token_bytes": core.token_bytes,
        "physical_bytes": core.physical_bytes(),
        "leaks": cache.leaks,
        "counters": dict(core.counters()),
        "usage": dict(usage),
        "tally": vars(cache.tally).copy(),
        "pages": pages_by_state(usage),
        "busiest": [
            {"namespace": _masked(namespace), "start": start, "end": end, "hits": hits, "first_ids": list(ids)}
            for namespace, start, end, hits, ids in core.busiest(BUSIEST)
        ],
    }


def _masked(namespace: str | None) -> str | None:
    """A name by which two namespaces can be told apart, and nothing else: a cache salt is a secret."""
    return None if namespace is None else blake2b(namespace.encode(), digest_size=4, key=_KEY).hexdigest()


def add_to_internal_state(output: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER `Scheduler.get_internal_state`."""
    if isinstance(scheduler.tree_cache, VTensorCache):
        output.internal_state["vtensor"] = describe(scheduler.tree_cache)


def set_internal_state(original: Callable[..., Any], scheduler: Any, recv_req: Any) -> Any:
    """AROUND `Scheduler.set_internal_state`: take the limit of memory; all other settings are SGLang's."""
    settings = recv_req.server_args
    cache = scheduler.tree_cache
    if not isinstance(cache, VTensorCache) or MEMORY_LIMIT not in settings:
        return original(scheduler, recv_req)
    try:
        if len(settings) > 1:
            raise ValueError(f"{MEMORY_LIMIT} has to be set by itself")
        if int(settings[MEMORY_LIMIT]) != settings[MEMORY_LIMIT]:
            raise ValueError(f"{MEMORY_LIMIT} is in whole bytes")
        cache.elastic.set_limit(int(settings[MEMORY_LIMIT]))
        if cache.metrics is not None:
            cache.metrics.changed()
    except (ValueError, OverflowError) as error:  # the latter of an infinite one
        logger.warning("The memory limit stays as it was: %s", error)
        return SetInternalStateReqOutput(updated=False)
    logger.info("The KV cache may take %d bytes from now on.", cache.elastic.limit_bytes())
    return SetInternalStateReqOutput(updated=True)


def check_when_idle(original: Callable[..., None], checker: Any) -> None:
    """AROUND `SchedulerInvariantChecker._check_tree_cache`, which SGLang calls when no request is left."""
    original(checker)
    cache = checker.tree_cache
    if isinstance(cache, VTensorCache):
        cache.check_idle()
        changed = cache.elastic.idle(lambda: finish_forwards(cache))
        if cache.metrics is not None:
            if changed:
                cache.metrics.changed()
            cache.metrics.idle()
