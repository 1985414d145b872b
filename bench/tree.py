# SPDX-License-Identifier: Apache-2.0
"""The radix tree against SGLang's own RadixCache, in one process: matching a prompt, recording a turn, evicting.

    SGLANG_USE_CPU_ENGINE=1 python bench/tree.py [--json bench/results/tree.json]

Both sides are called as SGLang's scheduler calls them, through `BasePrefixCache`, and hold the same conversations over
a pool of the same size. SGLang's tree gets SGLang's allocator, as in a server: what evicting costs is mostly there.
The floor of a match is one comparison of the prompt's ids with the recorded ones, by memcmp, in memory.
"""

import argparse
import ctypes
import os
import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import torch
from common import median_seconds, write_json
from rich.console import Console
from rich.table import Table
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

from vt_sglang._core import KVCache
from vt_sglang.adapter.allocator import VTensorAllocator
from vt_sglang.adapter.rows import VTensorRows
from vt_sglang.adapter.tree_cache import VTensorCache

POOL_TOKENS = 1_000_000
PAGE_TOKENS = 16
LEAVES, LEAF_TOKENS, EVICTED = 20_000, 40, 64

# Tokens of a prompt, and of each piece it was recorded in: the turns of a chat, or the chunks in which SGLang prefills
# (8,192 tokens) one long document.
SHAPES = [(1_000, 125), (10_000, 500), (100_000, 2_000), (100_000, 8_192)]


def _ids(source: random.Random, count: int) -> "array[int]":
    return array("q", (source.randrange(128_000) for _ in range(count)))


class Stock:
    """SGLang's tree and allocator."""

    def __init__(self) -> None:
        self.allocator = TokenToKVPoolAllocator(POOL_TOKENS, torch.bfloat16, "cpu", None, need_sort=False)
        self.cache = RadixCache(
            CacheInitParams(
                disable=False, req_to_token_pool=None, token_to_kv_pool_allocator=self.allocator, page_size=1
            )
        )
        self._locations: torch.Tensor | None = None

    def record(self, ids: "array[int]") -> None:
        """Put a sequence into the tree, with token slots for what is new."""
        matched = self.cache.match_prefix(MatchPrefixParams(key=RadixKey(ids))).device_indices
        self._locations = torch.cat([matched, self.allocator.alloc(len(ids) - len(matched))])
        self.insert(ids)

    def prepare(self, ids: "array[int]") -> None:
        """Take the token slots of a turn that is to be recorded."""
        matched = self.cache.match_prefix(MatchPrefixParams(key=RadixKey(ids))).device_indices
        self._locations = torch.cat([matched, self.allocator.alloc(len(ids) - len(matched))])

    def insert(self, ids: "array[int]") -> None:
        """Record the turn."""
        self.cache.insert(InsertParams(key=RadixKey(ids), value=self._locations))


@dataclass
class Request:
    """Of SGLang's Req, what recording reads."""

    req_pool_idx: int
    last_node: int
    full_untruncated_fill_ids: "array[int]"
    extend_range: Any
    prefix_indices: Any = None
    cache_protected_len: int = 0


@dataclass
class Range:
    """Of SGLang's Range, the end."""

    end: int


class Ours:
    """The project's, over host pages (their content is never touched here)."""

    def __init__(self) -> None:
        self.core = KVCache(
            driver="host",
            page_bytes=4096,
            token_bytes=4096 // PAGE_TOKENS,
            slots=4,
            slot_tokens=131_072,
            budget_pages=POOL_TOKENS // PAGE_TOKENS,
        )
        allocator = VTensorAllocator(self.core, dtype=torch.bfloat16, device="cpu", kvcache=None)
        rows = VTensorRows(self.core, max_context_len=1, device="cpu")
        self.cache = VTensorCache(
            CacheInitParams(disable=False, req_to_token_pool=rows, token_to_kv_pool_allocator=allocator, page_size=1)
        )
        self._request: Request | None = None

    def record(self, ids: "array[int]") -> None:
        """Put a sequence into the tree, with pages for what is new."""
        self.prepare(ids)
        self.insert(ids)
        self.done()

    def prepare(self, ids: "array[int]") -> None:
        """A request that holds its prefix and has its turn's tokens backed."""
        self.done()
        node = self.cache.match_prefix(MatchPrefixParams(key=RadixKey(ids))).last_device_node
        self.core.lock(node)
        slot = self.core.bind(None, node, len(ids))[0]
        self._request = Request(slot, node, ids, Range(len(ids)))

    def insert(self, _ids: "array[int]") -> None:
        """Record the turn, and move the request's lock there."""
        self.cache.cache_unfinished_req(self._request)

    def done(self) -> None:
        """End the request that was prepared last."""
        if self._request is not None:
            self.core.unlock(self._request.last_node)
            self.core.release(self._request.req_pool_idx)
            self._request = None


def _conversation(side: Stock | Ours, tokens: int, piece: int, source: random.Random) -> "array[int]":
    ids = _ids(source, tokens)
    for end in [*range(piece, tokens, piece), tokens]:
        side.record(ids[:end])
    return ids


def _match(side: Stock | Ours, tokens: int, piece: int) -> float:
    ids = _conversation(side, tokens, piece, random.Random(1))
    prompt = array("q", ids)  # another array than the recorded one, as in a server
    found = side.cache.match_prefix(MatchPrefixParams(key=RadixKey(prompt)))
    assert len(found.device_indices) == tokens
    return median_seconds(lambda: side.cache.match_prefix(MatchPrefixParams(key=RadixKey(prompt))), 300)


def _record(side: Stock | Ours, tokens: int, piece: int, added: int = 256, repeats: int = 50) -> float:
    """Recording turns of `added` tokens at the end of a conversation of about `tokens` tokens."""
    source = random.Random(2)
    ids = _conversation(side, tokens - repeats // 2 * added if tokens > 50_000 else tokens, piece, source)
    longer = [ids]

    def prepare() -> None:
        longer[0] = longer[0] + _ids(source, added)
        side.prepare(longer[0])

    return median_seconds(lambda: side.insert(longer[0]), repeats, prepare)


def _evict_conversation(side: Stock | Ours, tokens: int, piece: int) -> float:
    """Evicting all of one conversation, as it was recorded."""
    source = random.Random(5)

    def fill() -> None:
        _conversation(side, tokens, piece, source)
        if isinstance(side, Ours):
            side.done()

    def evict() -> None:
        assert side.cache.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted >= tokens

    return median_seconds(evict, 51, fill)


def _evict(side: Stock | Ours, *, refill: bool) -> float:
    """Evicting 64 of 20,000 leaves: one eviction after the other, or with as many leaves recorded anew in between, so
    that recording has taken the processor's caches."""
    source = random.Random(3)
    tokens = EVICTED * LEAF_TOKENS

    def fill(leaves: int) -> None:
        for _ in range(leaves):
            side.record(_ids(source, LEAF_TOKENS))
        if isinstance(side, Ours):
            side.done()

    def evict() -> None:
        # The project's tokens become available in whole pages: those of as many leaves.
        pages = EVICTED * -(-LEAF_TOKENS // PAGE_TOKENS)
        wanted = pages * PAGE_TOKENS if isinstance(side, Ours) else tokens
        assert side.cache.evict(EvictParams(num_tokens=wanted)).num_tokens_evicted >= tokens

    fill(LEAVES)
    return median_seconds(evict, 21, (lambda: fill(EVICTED)) if refill else None)


def _floor(tokens: int) -> float:
    """Seconds of one memcmp of so many equal ids."""
    one, other = _ids(random.Random(4), tokens), _ids(random.Random(4), tokens)
    libc = ctypes.CDLL(None)
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    a, b, size = one.buffer_info()[0], other.buffer_info()[0], len(one) * one.itemsize
    call = median_seconds(lambda: libc.memcmp(a, b, 0), 300)
    return max(median_seconds(lambda: libc.memcmp(a, b, size), 300) - call, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for tokens, piece in SHAPES:
        rows.append(
            {
                "operation": f"match {tokens:,} tokens recorded by {piece:,}",
                "sglang_us": _match(Stock(), tokens, piece) * 1e6,
                "vtensor_us": _match(Ours(), tokens, piece) * 1e6,
                "floor_us": _floor(tokens) * 1e6,
                "target": 3 if tokens < 10_000 else 10 if tokens == 100_000 else None,
            }
        )
    for tokens, piece in SHAPES:
        rows.append(
            {
                "operation": f"record 256 tokens after {tokens:,} by {piece:,}",
                "sglang_us": _record(Stock(), tokens, piece) * 1e6,
                "vtensor_us": _record(Ours(), tokens, piece) * 1e6,
                "floor_us": None,
                "target": 3 if tokens < 10_000 else 10 if tokens == 100_000 else None,
            }
        )
    rows += [
        {
            "operation": f"evict {tokens:,} tokens recorded by {piece:,}",
            "sglang_us": _evict_conversation(Stock(), tokens, piece) * 1e6,
            "vtensor_us": _evict_conversation(Ours(), tokens, piece) * 1e6,
            "floor_us": None,
            "target": 3 if tokens < 10_000 else None,
        }
        for tokens, piece in SHAPES
    ]
    rows += [
        {
            "operation": f"evict {EVICTED} of {LEAVES:,} leaves{detail}",
            "sglang_us": _evict(Stock(), refill=refill) * 1e6,
            "vtensor_us": _evict(Ours(), refill=refill) * 1e6,
            "floor_us": None,
            "target": target,
        }
        for refill, detail, target in ((False, "", 500), (True, ", recording between", None))
    ]
    table = Table("operation", "SGLang us", "vtensor us", "times faster", "target", "floor us")
    for row in rows:
        row["ratio"] = row["sglang_us"] / row["vtensor_us"]
        table.add_row(
            row["operation"],
            f"{row['sglang_us']:,.1f}",
            f"{row['vtensor_us']:,.1f}",
            f"{row['ratio']:,.1f}",
            f"{row['target']:,}" if row["target"] else "",
            f"{row['floor_us']:,.1f}" if row["floor_us"] is not None else "",
        )
    Console(width=110).print(table)
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
