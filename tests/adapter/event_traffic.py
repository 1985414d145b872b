# SPDX-License-Identifier: Apache-2.0
"""Requests against a VTensorCache over a core without memory, as SGLang's scheduler plays them."""

import random
from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vt_sglang._core import KVCache, OutOfPages, SlotsBusy
from vt_sglang.events.hashing import block_digests, event_hash, namespace_digest

TOKEN_BYTES, PAGE_BYTES = 48, 256  # 5.33 tokens a page: nodes, blocks and pages have no borders in common
SLOTS = 6


def make_core(block_tokens: int, pages: int = 60) -> KVCache:
    return KVCache(
        driver="none",
        page_bytes=PAGE_BYTES,
        token_bytes=TOKEN_BYTES,
        slots=SLOTS,
        slot_tokens=200,
        budget_pages=pages,
        block_tokens=block_tokens,
    )


def make_cache(block_tokens: int, pages: int = 60) -> Any:
    """A VTensorCache that makes events."""
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    from vt_sglang.adapter.allocator import VTensorAllocator
    from vt_sglang.adapter.rows import VTensorRows
    from vt_sglang.adapter.tree_cache import VTensorCache

    core = make_core(block_tokens, pages)
    return VTensorCache(
        CacheInitParams(
            disable=False,
            req_to_token_pool=VTensorRows(core, max_context_len=200, device="cpu"),
            token_to_kv_pool_allocator=VTensorAllocator(core, dtype=torch.float32, device="cpu", kvcache=None),
            page_size=1,
            enable_kv_cache_events=True,
        )
    )


def names_in(core: KVCache) -> set[int]:
    """What events call the blocks that the core holds."""
    digests = core.blocks()
    names = [event_hash(digests[at : at + 32]) for at in range(0, len(digests), 32)]
    assert len(set(names)) == len(names), "two blocks of the tree have one name"
    return set(names)


def names_of(namespace: str | None, tokens: list[int], block_tokens: int) -> list[int]:
    """What events call the whole blocks of a path."""
    ids = np.array(tokens, dtype=np.int64)
    return [event_hash(digest) for digest in block_digests(ids, block_tokens, namespace_digest(namespace))]


@dataclass
class Traffic:
    """Random requests: prompts that go on where others ended or fork from them, chunks, aborts, evictions, flushes."""

    cache: Any
    random: random.Random
    namespaces: tuple[str | None, ...] = (None, "salt")
    clears: bool = True
    live: list[SimpleNamespace] = field(default_factory=list)
    recorded: list[tuple[str | None, list[int]]] = field(default_factory=list)
    """Every sequence that was put into the tree, in order."""

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.35:
            self.start()
        elif choice < 0.6 and self.live:
            self.go_on(self.random.choice(self.live))
        elif choice < 0.85 and self.live:
            self.end(self.random.choice(self.live))
        elif choice < 0.97:
            self.cache.core.evict(self.random.randint(1, 12))
        elif self.clears:
            self.flush()

    def start(self) -> None:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        namespace, tokens = self._prompt()
        key = RadixKey(array("q", tokens), namespace)
        found = self.cache.match_prefix(MatchPrefixParams(key=key))
        node = found.last_device_node
        self.cache.inc_lock_ref(node)
        try:
            slot = self.cache.core.bind(namespace, node, len(tokens))[0]
        except (OutOfPages, SlotsBusy, ValueError):
            self.cache.dec_lock_ref(node)
            return
        req = SimpleNamespace(
            req_pool_idx=slot,
            full_untruncated_fill_ids=array("q", tokens),
            extra_key=namespace,
            last_node=node,
            extend_range=None,
            _refresh_fill_ids=lambda: None,
        )
        matched = len(found.device_indices)
        # in one go or in chunks
        for end in sorted({self.random.randint(min(matched + 1, len(tokens)), len(tokens)), len(tokens)}):
            req.extend_range = SimpleNamespace(end=end)
            self.cache.cache_unfinished_req(req)
            self.recorded.append((namespace, tokens[:end]))
        self.live.append(req)

    def go_on(self, req: SimpleNamespace) -> None:
        """Decode some tokens."""
        more = [self.random.randint(0, 2) for _ in range(self.random.randint(1, 20))]
        total = len(req.full_untruncated_fill_ids) + len(more)
        if total > 200:
            return
        try:
            self.cache.core.grow(np.array([req.req_pool_idx]), np.array([total]))
        except OutOfPages:
            return
        req.full_untruncated_fill_ids.extend(more)

    def end(self, req: SimpleNamespace) -> None:
        """Finish, at times without its being recorded."""
        self.live.remove(req)
        is_insert = self.random.random() < 0.9
        tokens = list(req.full_untruncated_fill_ids)
        if is_insert:
            self.recorded.append((req.extra_key, tokens))
        self.cache.cache_finished_req(req, is_insert, kv_len_to_handle=len(tokens))
        self.cache.req_to_token_pool.free(req)

    def end_all(self) -> None:
        for req in list(self.live):
            self.end(req)

    def flush(self) -> None:
        self.end_all()
        self.cache.reset()

    def _prompt(self) -> tuple[str | None, list[int]]:
        known = self.recorded[-30:]
        if known and self.random.random() < 0.7:
            namespace, tokens = self.random.choice(known)
            tokens = tokens[: self.random.randint(0, len(tokens))]
        else:
            namespace, tokens = self.random.choice(self.namespaces), []
        tokens = tokens + [self.random.randint(0, 2) for _ in range(self.random.randint(1, 40))]
        return namespace, tokens[:160]
