# SPDX-License-Identifier: Apache-2.0
"""Memory goes back while the server runs: where a limit is set below what there is, and after it was idle for a while.

Giving a page back is a call of the driver for the page and one for each of its mappings, some tens of microseconds in
all. So it happens in slices, between two steps.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReqOutput

from vt_sglang._core import KVCache
from vt_sglang.adapter.tree_cache import VTensorCache

logger = logging.getLogger(__name__)

LIMIT = "vtensor_memory_limit"
"""Among the `server_args` of SGLang's /set_internal_state: bytes of KV cache, 0 for all that the server was started
with."""

_BUSY_CALLS, _IDLE_CALLS = 64, 2000
"""Of the driver, in a slice: some milliseconds beside requests, and not so long that the next one waits."""


class Elastic:
    """When a cache gives memory back.

    Args:
        core: the cache.
        idle_trim_s: after so many seconds without a forward everything that is cached goes; 0: never.
        now_s: a monotonic clock.
    """

    def __init__(self, core: KVCache, idle_trim_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._core = core
        self._idle_trim_s = idle_trim_s
        self._now_s = now_s
        self._last_work_s = now_s()
        self._told = False

    def limit_bytes(self) -> int:
        """What the pages may take, the padding page aside."""
        return self._core.usage()["limit_pages"] * self._core.page_bytes

    def set_limit(self, limit_bytes: int) -> None:
        """What no request holds goes at once as far as it is above; its memory, step by step. 0: no limit.

        ValueError for less than a page, or more than the server was started with.
        """
        usage, page_bytes = self._core.usage(), self._core.page_bytes
        pages = limit_bytes // page_bytes if limit_bytes else usage["budget_pages"]
        if limit_bytes < 0 or not 0 < pages <= usage["budget_pages"]:
            most = usage["budget_pages"] * page_bytes
            raise ValueError(
                f"a limit of {limit_bytes} bytes: give {page_bytes} (a page) to {most}, or 0 for all of it"
            )
        self._core.set_limit(pages)

    def work(self) -> None:
        """A forward is about to be launched."""
        self._last_work_s = self._now_s()
        self._told = False

    def step(self) -> None:
        """Between two steps, whether or not there is work."""
        usage = self._core.usage()
        if usage["created_pages"] > usage["limit_pages"] + 1:
            self._core.shrink(_BUSY_CALLS)

    def idle(self) -> None:
        """No request is left."""
        if not self._idle_trim_s or self._now_s() - self._last_work_s < self._idle_trim_s:
            return
        usage = self._core.usage()
        if usage["created_pages"] <= 1:
            return
        if usage["evictable_pages"]:
            self._core.evict(usage["evictable_pages"])
        given_back = self._core.trim(0, most_calls=_IDLE_CALLS, settled=False)
        if given_back and not self._told:
            self._told = True
            logger.info("Idle for %g s: the KV cache's memory goes back to the driver.", self._idle_trim_s)


def set_internal_state(original: Callable[..., Any], scheduler: Any, recv_req: Any) -> Any:
    """AROUND `Scheduler.set_internal_state`: take the limit of memory; all other settings are SGLang's."""
    settings = recv_req.server_args
    cache = scheduler.tree_cache
    if not isinstance(cache, VTensorCache) or LIMIT not in settings:
        return original(scheduler, recv_req)
    try:
        if len(settings) > 1:
            raise ValueError(f"{LIMIT} has to be set by itself")
        if int(settings[LIMIT]) != settings[LIMIT]:
            raise ValueError(f"{LIMIT} is in whole bytes")
        cache.elastic.set_limit(int(settings[LIMIT]))
    except ValueError as error:
        logger.warning("The memory limit stays as it was: %s", error)
        return SetInternalStateReqOutput(updated=False)
    logger.info("The KV cache may take %d bytes from now on.", cache.elastic.limit_bytes())
    return SetInternalStateReqOutput(updated=True)
