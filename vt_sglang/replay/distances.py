# SPDX-License-Identifier: Apache-2.0
"""Reuse distances of prefix tokens, and the hit rate of every capacity at once.

A prefix token is a token together with all before it. A request uses those of its prompt and its output, the first as
the most recent one. The distance of a use is the number of distinct prefix tokens used since that token's last use,
itself included: its place in an LRU stack. So a cache of C tokens that evicts the least recently used token first hits
exactly the uses with a distance of at most C (Mattson, Gecsei, Slutz and Traiger, "Evaluation techniques for storage
hierarchies", IBM Systems Journal 9(2), 1970), and one pass gives the curve over all capacities.

All tokens last used by one request are the end of that request's path, so they are found in runs: a run of n tokens has
the distances w + 1 ... w + n, where w tokens were used since.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vt_sglang.replay.work import Work

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Distances:
    """Uses by runs: `lengths[i]` uses have the distances `before[i] + 1` ... `before[i] + lengths[i]`, in units."""

    before: Ints
    lengths: Ints
    distinct: int
    """Distinct prefix tokens of the trace."""

    @property
    def uses(self) -> int:
        """Uses of tokens that were used before: the hits of a cache without end."""
        return int(self.lengths.sum())

    @property
    def largest(self) -> int:
        """The capacity from which on nothing more is hit; 0 if nothing is."""
        return int((self.before + self.lengths).max(initial=0))

    def within(self, capacity: int) -> int:
        """Uses with a distance of at most `capacity`."""
        return int(np.clip(capacity - self.before, 0, self.lengths).sum())

    def corners(self) -> tuple[Ints, Ints]:
        """Capacities, ascending from 0, between which `within` is a straight line, and its values there."""
        at = np.concatenate([self.before, self.before + self.lengths])
        slopes = np.repeat(np.array([1, -1], dtype=np.int64), len(self.before))
        capacities, which = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), at]), return_inverse=True)
        change = np.zeros(len(capacities), dtype=np.int64)
        np.add.at(change, which[1:], slopes)
        steps = np.diff(capacities) * np.cumsum(change)[:-1]
        return capacities, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(steps)])

    def histogram(self) -> list[tuple[int, int]]:
        """(distance up to which, uses with that distance and more than the entry's before), by powers of two."""
        entries: list[tuple[int, int]] = []
        above, bound = 0, 1
        while above < self.uses:
            if (within := self.within(bound)) > above or entries:
                entries.append((bound, within - above))
            above = within
            bound *= 2
        return entries


class _Run:
    """Tokens of a tree of prefixes that were last used by the same request."""

    __slots__ = ("children", "time", "tokens")

    def __init__(self, tokens: Ints, time: int) -> None:
        self.tokens = tokens
        self.time = time
        self.children: dict[int, _Run] = {}

    def split(self, count: int) -> None:
        """Keep the first `count` tokens, and move the rest below."""
        below = _Run(self.tokens[count:], self.time)
        below.children = self.children
        self.tokens = self.tokens[:count]
        self.children = {int(below.tokens[0]): below}


class _Counts:
    """Prefix tokens by the request that used them last: a Fenwick tree (Fenwick 1994)."""

    def __init__(self, requests: int) -> None:
        self._sums = [0] * (requests + 1)
        self.total = 0

    def add(self, request: int, count: int) -> None:
        self.total += count
        index = request + 1
        while index < len(self._sums):
            self._sums[index] += count
            index += index & -index

    def after(self, request: int) -> int:
        """Tokens used by later requests than this."""
        index, before = request + 1, 0
        while index > 0:
            before += self._sums[index]
            index &= index - 1
        return self.total - before


def measure(works: Sequence[Work], on_progress: Callable[[int], None] = lambda _: None) -> Distances:
    """Distances of all uses, by a tree of its own and not the core's."""
    roots: dict[str | None, _Run] = {}
    counts = _Counts(len(works))
    before, lengths = array("q"), array("q")
    for now, work in enumerate(works):
        node = roots.setdefault(work.namespace, _Run(np.empty(0, dtype=np.int64), -1))
        units = np.frombuffer(work.units, dtype=np.int64)
        position, found_at, offset, moved = 0, -1, 0, array("q")
        while position < len(units) and (child := node.children.get(int(units[position]))) is not None:
            same = _common_prefix(child.tokens, units[position:])
            if same < len(child.tokens):
                child.split(same)
            if child.time != found_at:
                found_at, offset = child.time, 0
            if (used := min(work.limit - position, same)) > 0:
                before.append(counts.after(found_at) + offset)
                lengths.append(used)
            moved.extend((child.time, same))
            offset += same
            position += same
            child.time = now
            node = child
        for time, count in zip(moved[::2], moved[1::2], strict=True):
            counts.add(time, -count)
        counts.add(now, len(units))
        if position < len(units):
            node.children[int(units[position])] = _Run(units[position:], now)
        on_progress(1)
    return Distances(np.array(before, dtype=np.int64), np.array(lengths, dtype=np.int64), counts.total)


def _common_prefix(left: Ints, right: Ints) -> int:
    count = min(len(left), len(right))
    differ = left[:count] != right[:count]
    first = int(differ.argmax()) if count else 0
    return first if count and differ[first] else count
