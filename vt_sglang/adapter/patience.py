# SPDX-License-Identifier: Apache-2.0
"""Calls of the core that are worth repeating: where a forward has to end first, and where the driver has no memory.

Mapping a page takes memory too, for the GPU's page tables, and the ledger does not know how much. On a card that others
have filled, such a call fails. Then the cache gives some pages back to the driver, and the call is repeated; for some
seconds, since others may let go of memory as well.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vt_sglang._core import OutOfMemory, SlotsBusy
from vt_sglang.adapter.forwards import wait_for_forwards
from vt_sglang.adapter.tree_cache import VTensorCache

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_WAITS_S = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
WAITS_IN_DECODE_S = (0.0, 0.1, 0.3)
"""Where it is better to retract a request than to wait for others to let go of memory."""
_GIVEN_BACK = 16
"""Pages at a time."""


def patiently(cache: VTensorCache, call: Callable[[], Result], waits_s: Sequence[float] = _WAITS_S) -> Result:
    """The call's result.

    Raises:
        OutOfMemory: the driver had no memory for it in all that time.
        whatever else the call raises.
    """
    for wait_s in waits_s:
        try:
            return call()
        except SlotsBusy:
            wait_for_forwards(cache)
        except OutOfMemory as error:
            cache.core.finish_ahead()  # a page that was mapped ahead may be cleared by this, which is waited for
            wait_for_forwards(cache)
            given_back = _give_back(cache)
            logger.warning("%s. Gave %d pages back to the driver; trying again in %.1f s.", error, given_back, wait_s)
            time.sleep(wait_s)
    return call()


def _give_back(cache: VTensorCache) -> int:
    """Release pages beyond those that are promised to this step's requests: some that are evicted for it."""
    free = cache.core.usage()["free_pages"]
    cache.core.evict(_GIVEN_BACK)
    return cache.core.trim(free)
