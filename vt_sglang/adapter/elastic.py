# SPDX-License-Identifier: Apache-2.0
"""Memory goes back while the server runs: where a limit is set below what there is, and after it was idle for a while.

Giving a page back is a call of the driver for the page and one for each of its mappings, some tens of microseconds in
all. So it happens in slices, between two steps.
"""

import logging
import time
from collections.abc import Callable

from vt_sglang._core import KVCache

logger = logging.getLogger(__name__)

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

    def step(self) -> bool:
        """Between two steps, whether or not there is work. Costs nothing where no more exists than may.

        Returns:
            Whether memory went back.
        """
        return self._core.shrink(_BUSY_CALLS) > 0

    def idle(self, wait: Callable[[], None]) -> bool:
        """No request is left: what a limit asks for goes in larger slices, and in the end all.

        Args:
            wait: until the device has done what it was told.

        Returns:
            Whether anything was evicted, or memory went back.
        """
        given_back = self._core.shrink(_IDLE_CALLS)
        usage = self._core.usage()
        if usage["created_pages"] > usage["limit_pages"] + 1:
            self._settle(wait)  # no forward comes before which what is left would have to be done
            given_back += self._core.shrink(_IDLE_CALLS, settled=True)
        if not self._idle_trim_s or self._now_s() - self._last_work_s < self._idle_trim_s:
            return given_back > 0
        usage = self._core.usage()
        if usage["created_pages"] <= 1:
            return given_back > 0
        if usage["evictable_pages"]:
            self._core.evict(usage["evictable_pages"])
        self._settle(wait)
        given_back += self._core.trim(0, most_calls=_IDLE_CALLS)
        if given_back and not self._told:
            self._told = True
            logger.info("Idle for %g s: the KV cache's memory goes back to the driver.", self._idle_trim_s)
        return given_back > 0 or usage["evictable_pages"] > 0

    def _settle(self, wait: Callable[[], None]) -> None:
        self._core.finish_ahead()  # what was mapped ahead may be cleared by this
        wait()
