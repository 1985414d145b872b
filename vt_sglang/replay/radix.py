# SPDX-License-Identifier: Apache-2.0
"""SGLang's own RadixCache and allocator as a cache of a given size, called as its scheduler calls them."""

import os
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from vt_sglang.replay.caches import PROGRESS_REQUESTS, Outcome, Progress
from vt_sglang.replay.work import Work


def why_not() -> str | None:
    """None where SGLang can be imported; else why not."""
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what SGLang lacks where there is no GPU; nothing of that is used here
            import sglang.srt.mem_cache.radix_cache  # noqa: F401
    except Exception as error:  # whatever an incomplete installation raises
        return f"{type(error).__name__}: {error}"
    return None


@dataclass
class _Range:
    """Of SGLang's Range, the end."""

    end: int


class _Request:
    """Of SGLang's Req, what its cache reads and writes."""

    req_pool_idx = 0
    priority = 0

    def __init__(self, work: Work, total: int) -> None:
        units = work.units
        self.full_untruncated_fill_ids = units if total == len(units) else units[:total]
        self.origin_input_ids = units if total == work.prompt else units[: work.prompt]
        self.output_ids = units[work.prompt : total]
        self.extra_key = work.namespace
        self.extend_range = _Range(0)
        self.prefix_indices: Any = None
        self.last_node: Any = None
        self.cache_protected_len = 0

    def get_fill_ids(self) -> "array[int]":
        return self.full_untruncated_fill_ids[: self.extend_range.end]


class _Rows:
    """SGLang's ReqToTokenPool, with one row."""

    def __init__(self, units: int) -> None:
        import torch

        self.req_to_token = torch.zeros((1, units), dtype=torch.int32)

    def write(self, indices: Any, values: Any) -> None:
        self.req_to_token[indices] = values


def play(capacity: int, works: Sequence[Work], chunk: int, on_progress: Progress = lambda _: None) -> Outcome:
    """The same requests as `caches.play`, on a pool of `capacity` units at page size 1.

    Writing a request's row is a part of it, as mapping a virtual tensor is of a bind. Not measured is, to SGLang's
    advantage, that an output takes its room token by token.
    """
    import torch
    from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.common import evict_from_tree_cache
    from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

    allocator = TokenToKVPoolAllocator(capacity, torch.bfloat16, "cpu", None, need_sort=False)
    rows = _Rows(max(len(work.units) for work in works))
    cache = RadixCache(
        CacheInitParams(disable=False, req_to_token_pool=rows, token_to_kv_pool_allocator=allocator, page_size=1)
    )
    matched_units: list[int] = []
    refused = 0
    seconds = 0.0
    for number, work in enumerate(works, start=1):
        if number % PROGRESS_REQUESTS == 0:
            on_progress(PROGRESS_REQUESTS)
        if work.prompt > capacity:
            refused += 1
            matched_units.append(0)
            continue
        total = min(len(work.units), capacity)
        request = _Request(work, total)
        row = rows.req_to_token[0]
        began = perf_counter()
        key = RadixKey(request.full_untruncated_fill_ids, work.namespace, limit=work.limit)
        found = cache.match_prefix(MatchPrefixParams(key=key))
        request.last_node = found.last_device_node
        cache.inc_lock_ref(request.last_node)
        matched = len(found.device_indices)
        row[:matched] = found.device_indices
        seconds += perf_counter() - began
        request.cache_protected_len = matched
        start, end = matched, min(matched + chunk, work.prompt)
        while True:
            began = perf_counter()
            evict_from_tree_cache(cache, end - start)
            row[start:end] = allocator.alloc(end - start)
            seconds += perf_counter() - began
            if start >= work.prompt:
                break
            request.extend_range.end = end
            began = perf_counter()
            cache.cache_unfinished_req(request)
            seconds += perf_counter() - began
            if end == total:
                break
            start, end = end, min(end + chunk, work.prompt) if end < work.prompt else total
        began = perf_counter()
        cache.cache_finished_req(request, kv_len_to_handle=total)
        seconds += perf_counter() - began
        matched_units.append(matched)
    on_progress(len(works) % PROGRESS_REQUESTS)
    return Outcome(matched_units, refused, seconds)
