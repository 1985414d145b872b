# SPDX-License-Identifier: Apache-2.0
"""What the core's tests share: geometry, known bytes for every token, the arena as numpy sees it, the kernel's view."""

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vt_sglang._core import KVCache

MakeCache = Callable[..., KVCache]  # the fixture of that name

PAGE = 4096
# Bytes of a token: dividing the page, twice not dividing it (tokens straddle pages), and larger than a page.
TOKEN_SIZES = (64, 96, 1000, 6000)
WORD = 8  # all of them are whole 64-bit words, in which patterns are written and compared

_FNV_PRIME = 0x100000001B3
_FNV_START = 0xCBF29CE484222325
_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def ids(text: str) -> array:
    """Token ids, one a character: a shorthand for sequences in tests."""
    return array("q", (ord(letter) for letter in text))


def ints(*values: int) -> np.ndarray:
    """The core's argument type for slots and token counts."""
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Geometry:
    """How token positions fall on pages, written down a second time and independently of csrc/types.h."""

    token_bytes: int
    page_bytes: int = PAGE

    def pages_for(self, tokens: int) -> int:
        """Pages that the first `tokens` tokens touch."""
        return -(-tokens * self.token_bytes // self.page_bytes)

    def tail_bytes(self, tokens: int) -> int:
        """Bytes of the last page that they fill; 0 if they end on a page border."""
        return tokens * self.token_bytes % self.page_bytes

    def tokens_in(self, pages: int) -> int:
        """Whole tokens that so many pages hold."""
        return pages * self.page_bytes // self.token_bytes

    def tokens_past(self, pages: int) -> int:
        """The shortest sequence with a partly filled last page that touches more than `pages` pages."""
        tokens = self.tokens_in(pages) + 1
        while self.tail_bytes(tokens) == 0:
            tokens += 1
        return tokens


def prefix_hashes(namespace: str | None, tokens: Sequence[int], start: int = 0, state: int | None = None) -> list[int]:
    """One 64-bit hash for every token, of the namespace and of all tokens up to it."""
    if state is None:
        state = _FNV_START
        for byte in b"\0" if namespace is None else b"\1" + namespace.encode():
            state = (state ^ byte) * _FNV_PRIME & _MASK
    hashes = []
    for token in tokens[start:]:
        state = (state ^ (token + 1)) * _FNV_PRIME & _MASK
        hashes.append(state)
    return hashes


def pattern(hashes: Sequence[int], token_bytes: int) -> np.ndarray:
    """The KV of tokens with these hashes: [tokens, words] of uint64. No two words of different prefixes agree.

    A real model's KV at a position is a function of the whole prefix, and so is this: where one byte of a sequence
    comes from another sequence, or from another position, a comparison shows it.
    """
    words = np.arange(token_bytes // WORD, dtype=np.uint64) * _GOLDEN
    return np.array(hashes, dtype=np.uint64)[:, None] + words[None, :]


@dataclass(frozen=True)
class Mapping:
    """A line of /proc/self/maps."""

    start: int
    end: int
    access: str
    offset: int
    path: str


def system_mappings(start: int, end: int) -> list[Mapping]:
    """What the kernel says is mapped between two addresses."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            fields = line.split(maxsplit=5)
            low, high = (int(part, 16) for part in fields[0].split("-"))
            if low < end and high > start:
                path = fields[5].strip() if len(fields) > 5 else ""
                found.append(Mapping(max(low, start), min(high, end), fields[1], int(fields[2], 16), path))
    return found


class Memory:
    """The bytes of a cache's arena, whatever driver made it."""

    def __init__(self, cache: KVCache) -> None:
        self.base = cache.base
        self.page_bytes = cache.page_bytes
        self.token_bytes = cache.token_bytes
        self.slot_bytes = cache.slot_bytes
        self.bytes = cache.slots * cache.slot_bytes
        if cache.driver == "host":
            view = np.from_dlpack(cache.tensor(0, [self.bytes], [1], "uint8"))
        else:  # a device's tensor, which numpy refuses; the fake device's memory is the host's
            view = np.ctypeslib.as_array((ctypes.c_uint8 * self.bytes).from_address(self.base))
        self._words = view.view(np.uint64)

    def tokens(self, slot: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a slot as [tokens, words] of uint64, without a copy."""
        first = (slot * self.slot_bytes + start * self.token_bytes) // WORD
        count = (stop - start) * self.token_bytes // WORD
        return self._words[first : first + count].reshape(stop - start, self.token_bytes // WORD)

    def accessible(self, slot: int, tokens: int) -> bool:
        """Whether the kernel lets the first tokens of a slot be read and written; asked before touching them."""
        start = self.base + slot * self.slot_bytes
        end = start + tokens * self.token_bytes
        reached = start  # a mapping may be listed twice, if a thread adds to it while the list is read
        for mapping in system_mappings(start, end):
            if mapping.access.startswith("rw") and mapping.start <= reached:
                reached = max(reached, mapping.end)
        return reached == end

    def mapped_pages(self) -> dict[tuple[int, int], int]:
        """(slot, page index) -> offset in the memory file, in pages, for all that the kernel maps in the arena."""
        pages = {}
        for mapping in system_mappings(self.base, self.base + self.bytes):
            if not mapping.access.startswith("rw"):
                continue
            for step in range((mapping.end - mapping.start) // self.page_bytes):
                at = mapping.start - self.base + step * self.page_bytes
                page = mapping.offset // self.page_bytes + step
                pages[at // self.slot_bytes, at % self.slot_bytes // self.page_bytes] = page
        return pages


def memory_files() -> dict[int, int]:
    """The process's memfds named vt-sglang: inode -> file descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("/memfd:vt-sglang"):
            found[os.stat(f"/proc/self/fd/{name}").st_ino] = int(name)
    return found


class Request:
    """A request as an engine runs it: match, lock, bind, write, then record and release.

    Its content is known (`pattern`), so `verify` can tell a right byte from a wrong one.
    """

    def __init__(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        *,
        namespace: str | None = None,
        room: int = 0,
        spare: int = 0,
        write: bool = True,
    ) -> None:
        self.cache = cache
        self.namespace = namespace
        self.ids = array("q", tokens)
        self.node, self.matched = cache.match(namespace, self.ids)
        cache.lock(self.node)
        try:
            bound = cache.bind(namespace, self.node, len(self.ids) + room, spare_pages=spare)
            self.slot, self.tail, self.shared, self.mapped = bound
        except BaseException:
            cache.unlock(self.node)
            raise
        if write:
            self.write(self.matched)

    def _pattern(self) -> np.ndarray:
        return pattern(prefix_hashes(self.namespace, self.ids), self.cache.token_bytes)

    def write(self, start: int = 0) -> None:
        """Compute the KV from `start` on."""
        Memory(self.cache).tokens(self.slot, start, len(self.ids))[:] = self._pattern()[start:]

    def append(self, tokens: Sequence[int]) -> None:
        """Generate tokens: grow and write."""
        start = len(self.ids)
        self.ids.extend(tokens)
        self.cache.grow(ints(self.slot), ints(len(self.ids)))
        self.write(start)

    def verify(self) -> None:
        """Every byte of the sequence is the one computed for it."""
        memory = Memory(self.cache)
        assert memory.accessible(self.slot, len(self.ids)), f"slot {self.slot} is not mapped as far as it is held"
        wrong = np.argwhere(memory.tokens(self.slot, 0, len(self.ids)) != self._pattern())
        assert len(wrong) == 0, f"slot {self.slot}: token {wrong[0][0]} differs from word {wrong[0][1]} on"

    def record(self, limit: int | None = None) -> tuple[int, bool, int]:
        """Put the sequence, or its first `limit` tokens, into the tree."""
        return self.cache.record(self.slot, self.ids, limit)

    def abort(self) -> None:
        """End without recording."""
        self.cache.release(self.slot)
        self.cache.unlock(self.node)

    def finish(self) -> tuple[int, bool, int]:
        """Record everything and end."""
        recorded = self.record()
        self.abort()
        return recorded


def run(cache: KVCache, tokens: Sequence[int], namespace: str | None = None) -> Request:
    """A request from beginning to end, its content checked before it leaves."""
    request = Request(cache, tokens, namespace=namespace)
    request.verify()
    request.finish()
    return request


def ledger(cache: KVCache) -> int:
    """What the cache reports, less what live requests hold besides: with theirs it makes `total_tokens`."""
    return cache.available_tokens() + cache.evictable_tokens() + cache.protected_tokens()


def counter_changes(cache: KVCache, before: dict[str, Any]) -> dict[str, int]:
    """Counters that moved since `before`."""
    return {name: value - before[name] for name, value in cache.counters().items() if value != before[name]}
