# SPDX-License-Identifier: Apache-2.0
"""What a state machine knows of the core: the world it lives in, its live requests, its locks."""

from collections import Counter
from dataclasses import dataclass, field

from core_harness import prefix_hashes

from vt_sglang._core import KVCache

Fault = tuple[str, int]  # a kind of driver call, and a number by which a world chooses one of them


@dataclass
class World:
    """What differs from one machine to another; with the count of what the machines met."""

    name: str
    token_bytes: int
    budget_pages: int = 14
    slots: int = 5
    symbol_tokens: int = 1  # tokens that one drawn symbol stands for, where many tokens fit on a page
    mapping_limit: int = 0
    guard_tokens: int = 0
    move_pages: bool = False
    map_ahead: bool = False
    copy_from_pages: int = 1
    late: bool = False  # whether the thread that maps ahead is waited for every few steps only
    met: Counter[str] = field(default_factory=Counter)

    def make(self) -> KVCache:
        return KVCache(
            driver="host",
            page_bytes=4096,
            token_bytes=self.token_bytes,
            slots=self.slots,
            slot_tokens=max(24 * self.symbol_tokens, 1),
            budget_pages=self.budget_pages,
            mapping_limit=self.mapping_limit,
            inject_faults=True,
            move_pages=self.move_pages,
            map_ahead=self.map_ahead,
            copy_from_pages=self.copy_from_pages,
        )

    def inject(self, cache: KVCache, fault: Fault) -> None:
        """Let a call fail, after up to three of its kind."""
        kind, number = fault
        cache.inject_fault(kind, number % 4)

    def limit_memory(self, cache: KVCache, pages: int) -> None:
        """Let there be memory for so many pages more."""
        cache.limit_memory(cache.usage()["created_pages"] + pages)

    def clear_faults(self, cache: KVCache) -> None:
        """End failures and the limit of memory."""
        cache.clear_faults()

    def after(self) -> None:
        """Called when a machine's cache is gone."""


@dataclass(eq=False)
class Lock:
    node: int
    hashes: list[int]


@dataclass
class Live:
    """A live request, as its owner knows it."""

    namespace: str | None
    ids: list[int]
    hashes: list[int]
    backed: int  # tokens
    written: int
    matched: int
    recorded: int
    lock: Lock | None
    forward: int = 0  # the last that used it

    def extend(self, tokens: list[int]) -> None:
        start = len(self.ids)
        self.ids += tokens
        self.hashes += prefix_hashes(self.namespace, self.ids, start, self.hashes[-1] if self.hashes else None)


def leading(hashes: list[int], known: set[int]) -> int:
    """Length of the longest prefix that is known."""
    for count, prefix in enumerate(hashes):
        if prefix not in known:
            return count
    return len(hashes)
