# SPDX-License-Identifier: Apache-2.0
"""SGLang's prefix cache, over the core's radix tree. A node is named by the core's handle; 0 is the root."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS
from sglang.srt.mem_cache.base_prefix_cache import (
    BasePrefixCache,
    DecLockRefParams,
    DecLockRefResult,
    EvictParams,
    EvictResult,
    IncLockRefResult,
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.registry import TreeCacheBuildContext

from vt_sglang.adapter.allocator import VTensorAllocator
from vt_sglang.adapter.elastic import Elastic
from vt_sglang.adapter.events import BlockEvents
from vt_sglang.adapter.rows import VTensorRows
from vt_sglang.adapter.tally import Tally
from vt_sglang.config import VTensorConfig

logger = logging.getLogger(__name__)

_ROOT = 0


class VTensorCache(BasePrefixCache):
    """The tree that decides which pages a request's virtual tensor shares.

    Who owns what of a request's tokens:

        |--- last_node's path ---|--- recorded by others too ---|--- not recorded yet ---|
        0                  bound or recorded           cache_protected_len       kv_allocated_len
        the tree, locked         the tree and the slot          the slot

    The pages of all of it are pinned while the slot is live.
    """

    def __init__(self, params: CacheInitParams) -> None:
        rows, allocator = params.req_to_token_pool, params.token_to_kv_pool_allocator
        if not isinstance(rows, VTensorRows) or not isinstance(allocator, VTensorAllocator):
            raise RuntimeError(
                f"SGLang built a {type(rows).__name__} and a {type(allocator).__name__} where virtual tensors were "
                "asked for; vt-sglang's hooks were not applied"
            )
        self.core = rows.core
        self.kv_pool = allocator.get_kvcache()
        self.req_to_token_pool = rows
        self.token_to_kv_pool_allocator = allocator
        self.page_size = 1
        self.disable = False
        self.device = torch.device(allocator.device)
        self.root_node = _ROOT
        self.leaks = 0
        config = VTensorConfig.from_environment()
        self.check_always = config.check
        self.elastic = Elastic(self.core, config.idle_trim)
        self.hopeless: list[Any] = []  # requests for which there is no memory, though nothing else runs
        self.short_of_memory = False  # as was told last
        # Counts the pages that the prefill batch being made, and all that runs, can spare for copies; None: it has no
        # prefix that is long enough to be copied.
        self.count_spare_pages: Callable[[], int] | None = None
        self.mixing: Any = None  # the running batch that the prefill batch being made may be mixed with
        self.events = BlockEvents(self.core) if params.enable_kv_cache_events and self.core.block_tokens else None
        self.last_forward = 0
        self.forward_stream: Any = None
        self.tally = Tally()
        self.metrics: Any = None  # a metrics.Metrics, once the scheduler has labels for it
        # SGLang asks a match only for its length; slices of one tensor give it without copies.
        self._lengths = torch.zeros(1, dtype=torch.int64, device=self.device).expand(self.core.slot_tokens)
        self._no_match = MatchResult(self._lengths[:0], _ROOT, _ROOT, _ROOT)
        if params.enable_metrics:
            self.init_metrics_collector()

    # ---- matching and recording

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """The longest recorded prefix of a key, token-exact."""
        key = params.key
        if len(key) == 0:
            return self._no_match
        node, tokens = self.core.match(key.extra_key, key.token_ids, key.limit, _furthest(params.req))
        if node == _ROOT:
            return self._no_match
        return MatchResult(self._lengths[:tokens], node, node, node)

    def cache_unfinished_req(self, req: Any, chunked: bool = False) -> None:  # noqa: ARG002
        """Record what the request has prefilled; from now on others can share it."""
        tokens = req.extend_range.end
        node, duplicate = self._record(req, tokens)
        if not duplicate:
            # Where another request recorded the same tokens first, this one's pages are not the tree's: it goes on
            # holding them by itself and leaves the tree's unlocked.
            self.core.lock(node)
            self.core.unlock(req.last_node)
            req.last_node = node
        req.prefix_indices = self._lengths[:tokens]
        req.cache_protected_len = tokens

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int) -> None:
        """Record a finished request, and let go of its path. SGLang frees its row, and with it its pages, next."""
        if is_insert:
            req._refresh_fill_ids()  # makes them the prompt and all output
            self._record(req, kv_len_to_handle)
        if req.last_node is not None:
            self.core.unlock(req.last_node)

    def reset(self) -> None:
        """Forget everything. Only when no request is left."""
        self.core.clear()
        if self.events is not None:
            self.events.cleared()
        if self.metrics is not None:
            self.metrics.changed()

    def take_events(self) -> list[Any]:
        """KV events since the last call, in order; none unless they are published."""
        return [] if self.events is None else self.events.take()

    def _record(self, req: Any, tokens: int) -> tuple[int, bool]:
        """Record a request's first tokens: (node that ends there, whether others had recorded some of them)."""
        ids = req.full_untruncated_fill_ids
        node, duplicate, added = self.core.record(req.req_pool_idx, ids, tokens)
        if added and self.events is not None:
            self.events.recorded(req.extra_key, node, ids)
        return node, duplicate

    # ---- locks and eviction

    def inc_lock_ref(self, node: int) -> IncLockRefResult:
        """Protect a node's path."""
        self.core.lock(node)
        return IncLockRefResult(delta=0)

    def dec_lock_ref(self, node: int, _params: DecLockRefParams | None = None) -> DecLockRefResult:
        """Undo one `inc_lock_ref`."""
        self.core.unlock(node)
        return DecLockRefResult(delta=0)

    def evict(self, params: EvictParams) -> EvictResult:
        """Evict until `num_tokens` more tokens are available, as far as that goes."""
        start = time.perf_counter()
        evicted = self.core.evict_tokens(params.num_tokens)
        if self.metrics_collector is not None and evicted > 0:
            # How much, metrics.py says: for these tokens and for all that are evicted where pages are taken.
            self.metrics_collector.observe_eviction_duration(time.perf_counter() - start)
        return EvictResult(num_tokens_evicted=evicted)

    # ---- the ledger, in tokens

    def evictable_size(self) -> int:
        """Tokens that would become available if everything unlocked were evicted."""
        return self.core.evictable_tokens()

    def protected_size(self) -> int:
        """Room of the pinned pages, less what running requests have not recorded; page rounding is in it."""
        return self.core.protected_tokens()

    def total_size(self) -> int:
        """Tokens recorded in the tree."""
        return self.core.usage()["tree_tokens"]

    def pretty_print(self) -> None:
        """Print what is in use."""
        print(self.core.usage())

    def check_idle(self) -> None:
        """RuntimeError, and a counted leak, if something is still held although no request is left."""
        usage = self.core.usage()
        pinned = usage["held_pages"] - usage["evictable_pages"] - 1  # the padding page
        if usage["live_slots"] == 0 and pinned == 0:
            return
        self.leaks += 1
        raise RuntimeError(
            f"memory leak detected in the virtual tensors: no request is left, and {usage['live_slots']} slots are "
            f"live and {pinned} pages pinned"
        )


def _furthest(req: Any) -> int:
    """How many tokens a request may come to, as SGLang's admission reckons. 0: not known."""
    if req is None:
        return 0
    tokens = len(req.origin_input_ids) + len(req.output_ids)
    new = min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), CLIP_MAX_NEW_TOKENS)
    return int(tokens + new)


def build_tree_cache(context: TreeCacheBuildContext) -> VTensorCache:
    """Factory of `--radix-cache-backend vtensor`."""
    from vt_sglang.adapter import hooks
    from vt_sglang.adapter.kv_pool import as_vtensor_pool

    hooks.verify()
    as_vtensor_pool(context.params.token_to_kv_pool_allocator.get_kvcache())
    cache = VTensorCache(context.params)
    cache.forward_stream = context.tp_worker.model_runner.forward_stream
    return cache
