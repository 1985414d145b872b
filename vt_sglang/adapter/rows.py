# SPDX-License-Identifier: Apache-2.0
"""Request rows: a request's row is its slot."""

import logging
from typing import Any, NoReturn

import torch
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from vt_sglang._core import KVCache

logger = logging.getLogger(__name__)


class VTensorRows(ReqToTokenPool):
    """`req_to_token` of virtual tensors: row s, column p always holds `s * slot_tokens + p`.

    Nothing of this project reads the table. It is there for stock SGLang code and attention backends, which find
    their tokens with it. A row never changes, so it is written once, when its slot is first bound.
    """

    def __init__(self, core: KVCache, *, max_context_len: int, device: str) -> None:
        # Not super().__init__(): it would fill the table and own a list of free rows.
        self.core = core
        self.size = core.slots - 1  # row 0 is padding
        self._alloc_size = core.slots
        self.max_context_len = max_context_len
        self.device = device
        self.req_to_token = torch.zeros((core.slots, max_context_len), dtype=torch.int32, device=device)
        self.req_generation = torch.zeros(core.slots, dtype=torch.int64)
        self._written = [False] * core.slots

    @property
    def free_slots(self) -> range:
        """As many elements as there are free rows; SGLang's leak check counts them."""
        return range(self.core.idle_slots())

    def available_size(self) -> int:
        """Rows without a request."""
        return self.core.idle_slots()

    def bound(self, slot: int) -> None:
        """Note that a request took a slot."""
        self.req_generation[slot] += 1
        if not self._written[slot]:
            start = slot * self.core.slot_tokens
            torch.arange(start, start + self.max_context_len, dtype=torch.int32, out=self.req_to_token[slot])
            self._written[slot] = True

    def alloc(self, _reqs: list[Any]) -> NoReturn:
        """Rows are given by binding a prefix to a slot, which `alloc_for_extend` does."""
        raise RuntimeError("a row of virtual tensors cannot be allocated without the prefix that it is bound to")

    def free(self, req: Any) -> None:
        """End a request's slot."""
        assert req.req_pool_idx is not None, "request must have req_pool_idx"
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Request %s: %s", req.rid, _told(self.core, req.req_pool_idx))
        self.core.release(req.req_pool_idx)
        req.req_pool_idx = None

    def write(self, _indices: Any, _values: Any) -> NoReturn:
        """Rows are constant."""
        raise RuntimeError("the rows of virtual tensors are constant; something tried to write token indices there")

    def clear(self) -> None:
        """After a flush, which SGLang does only when no request is left."""
        self.req_generation.zero_()


def _told(core: KVCache, slot: int) -> str:
    """What a live request has cost, in words: shared memory in bytes, calls in pages, time in milliseconds."""
    costs = core.costs(slot)
    return (
        f"{costs['pages_adopted'] * core.page_bytes} bytes of its prefix adopted, "
        f"{costs['pages_aliased'] * core.page_bytes} aliased; {costs['pages_mapped']} pages mapped, "
        f"{costs['pages_unmapped']} unmapped, {costs['pages_reused']} taken where they were mapped, "
        f"{costs['pages_moved']} moved, {costs['pages_copied']} copied; "
        f"tail {'copied' if costs['tail_copied'] else 'not copied'}; "
        f"{costs['driver_wait_ns'] / 1e6:.3f} ms in the driver"
    )
