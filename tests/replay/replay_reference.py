# SPDX-License-Identifier: Apache-2.0
"""Caches in a few lines of Python, slow and plain, that share no code with what they check."""

import random
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vt_sglang.replay.request import Request
from vt_sglang.replay.work import Work

BLOCK = 512
"""Tokens of a block of a Mooncake trace."""


def random_requests(seed: int, count: int, longest: int = 24) -> list[Request]:
    """Requests that go on from, or fork off, earlier ones, or begin anew; few tokens, so that much is shared."""
    source = random.Random(seed)
    sequences: list[list[int]] = []
    requests = []
    for number in range(count):
        old = source.choice(sequences) if sequences and source.random() < 0.8 else []
        kept = old[: source.randint(0, len(old))][:longest] if source.random() < 0.6 else old[:longest]
        prompt = kept + [source.randrange(3) for _ in range(source.randint(0, 9))] or [0]
        output = [source.randrange(3) for _ in range(source.randint(0, 6))]
        sequences.append(prompt + output)
        requests.append(Request(array("q", prompt + output), len(prompt), float(number)))
    return requests


@dataclass
class _Node:
    tokens: list[int]
    parent: "_Node | None" = None
    used: int = 0
    locked: bool = False
    owner: int = 0
    children: "list[_Node]" = field(default_factory=list)


class ReferenceCache:
    """Whole leaves of a tree, the one used longest ago first; a token is a page.

    A request that computes what the tree has already holds its own pages besides until it ends, and does not lock the
    tree's.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.root = _Node([])
        self.now = 0

    def serve(self, work: Work, chunk: int) -> int:
        """Tokens matched."""
        self.now += 1
        units = list(work.units)
        node, matched = self._walk(units[: work.limit])
        self._lock(node)
        total = min(len(units), self.capacity)
        end = min(matched + chunk, work.prompt)
        duplicate = False
        while True:
            self._make_room(end - matched)
            node = self._insert(units[:end])
            duplicate |= self._tokens(owner=self.now) < end - matched
            if not duplicate:
                self._lock(node)
            if end == total:
                break
            end = min(end + chunk, work.prompt) if end < work.prompt else total
        for it in self._nodes():
            it.locked = False
        return matched

    def _nodes(self) -> list[_Node]:
        found, queue = [], [self.root]
        while queue:
            node = queue.pop()
            found.append(node)
            queue += node.children
        return found

    def _walk(self, units: list[int]) -> tuple[_Node, int]:
        node, position = self.root, 0
        while True:
            node.used = self.now
            child = next((it for it in node.children if units[position : position + 1] == it.tokens[:1]), None)
            if child is None or position == len(units):
                return node, position
            same = 0
            while same < len(child.tokens) and units[position + same : position + same + 1] == [child.tokens[same]]:
                same += 1
            if same < len(child.tokens):
                upper = _Node(child.tokens[:same], node, self.now, child.locked, child.owner, [child])
                node.children[node.children.index(child)] = upper
                child.tokens, child.parent = child.tokens[same:], upper
                return upper, position + same
            node, position = child, position + same

    def _insert(self, units: list[int]) -> _Node:
        node, position = self._walk(units)
        if position == len(units):
            return node
        leaf = _Node(units[position:], node, self.now, owner=self.now)
        node.children.append(leaf)
        return leaf

    def _lock(self, node: _Node | None) -> None:
        while node is not None:
            node.locked, node = True, node.parent

    def _tokens(self, owner: int | None = None) -> int:
        return sum(len(it.tokens) for it in self._nodes() if owner is None or it.owner == owner)

    def _make_room(self, own: int) -> None:
        """Evict until the tree and the `own` tokens of the request fit; those that it recorded are both."""
        while self._tokens() - self._tokens(owner=self.now) + own > self.capacity:
            leaves = [it for it in self._nodes() if not it.children and not it.locked and it is not self.root]
            oldest = min(leaves, key=lambda it: it.used)
            assert oldest.parent is not None
            oldest.parent.children.remove(oldest)


def longest_common_prefixes(works: Sequence[Work]) -> list[int]:
    """Of each prompt, the part that some earlier request recorded."""
    found = []
    for number, work in enumerate(works):
        best = 0
        for earlier in works[:number]:
            same = 0
            while same < min(work.limit, len(earlier.units)) and earlier.units[same] == work.units[same]:
                same += 1
            best = max(best, same)
        found.append(best)
    return found


def stack_distances(works: Sequence[Work]) -> tuple[list[int], int]:
    """(distance of each use of a prompt's token that was used before, distinct prefix tokens), by an LRU stack."""
    stack: list[tuple[int, ...]] = []  # most recent first
    distances = []
    for work in works:
        path = [tuple(work.units[: end + 1]) for end in range(len(work.units))]
        distances += [stack.index(token) + 1 for token in path[: work.limit] if token in stack]
        stack = path + [token for token in stack if token not in path]
    return distances, len(stack)


def lru_of_tokens(works: Sequence[Work], capacity: int) -> int:
    """Tokens found by a cache of single tokens, each with all before it, that evicts the least recently used; within a
    request the first token counts as used last."""
    names: dict[tuple[Any, int], int] = {}  # of a token, by the one before it
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for it in works:
        path: list[int] = []
        before: Any = it.namespace
        for unit in it.units:
            before = names.setdefault((before, unit), len(names))
            path.append(before)
        found = next((index for index, token in enumerate(path[: it.limit]) if token not in cache), it.limit)
        hits += found
        for token in reversed(path):
            cache[token] = None
            cache.move_to_end(token)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


def records(seed: int = 0, count: int = 150) -> list[dict[str, Any]]:
    """Conversations that share a first block, grow turn by turn, and now and then fork."""
    source = random.Random(seed)
    fresh = iter(range(1, 1_000_000))
    conversations: list[list[int]] = []
    lines = []
    for number in range(count):
        blocks = list(source.choice(conversations)) if conversations and source.random() < 0.7 else [0]
        blocks = blocks[: source.randint(1, len(blocks))] if source.random() < 0.2 else blocks
        blocks += [next(fresh) for _ in range(source.randint(1, 5))]
        conversations.append(blocks)
        tail = source.randint(1, BLOCK)
        lines.append(
            {
                "timestamp": 1000 * number,
                "input_length": BLOCK * len(blocks) + tail,
                "output_length": source.randint(0, 300),
                "hash_ids": [*blocks, next(fresh)],
            }
        )
    return lines
