# SPDX-License-Identifier: Apache-2.0
"""What calls of the core cost: their time, and which of the driver's calls each of them made, by cause."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vt_sglang._core import KVCache

Result = TypeVar("Result")
Counts = Mapping[str, int]

CAUSES = {
    "alias": "a page of the prefix mapped (reckoned from tokens)",
    "fresh": "a page to write to mapped",
    "guard": "made readable behind the end",
    "created": "a page created",
    "released": "a page given back",
    "other": "made ready to move, or unmapped without another in its place",
}
"""Of driver calls."""
BESIDES = {
    "replaced": "of the pages mapped, those in place of another, which has to be unmapped",
    "moved": "pages whose contents were copied or swapped on the device",
    "copied": "pages of the prefix copied to pages of the request's own",
    "tails": "tails copied",
}
"""Counted with them, and no calls."""
ELSEWHERE = "elsewhere"
"""The operation of driver calls that no call of the scheduler made."""


def difference(before: Counts, after: Counts) -> dict[str, int]:
    """Of two readings of the core's counters; those that are no numbers are left out."""
    return {name: count - before.get(name, 0) for name, count in after.items() if isinstance(count, int)}


def by_cause(counted: Counts, tokens_a_page: float) -> dict[str, int]:
    """Driver calls of a difference of counters by cause, their sum as `all`, and what BESIDES has."""
    guard, mapped, calls = counted["guards_mapped"], counted["pages_mapped"], counted["driver_calls"]
    alias = min(round(counted["tokens_aliased"] / tokens_a_page), mapped - guard)
    found = {
        "alias": alias,
        "fresh": mapped - alias - guard,
        "guard": guard,
        "created": counted["pages_created"] + counted["creations_failed"],
        "released": counted["pages_released"],
    }
    return found | {
        "other": calls - sum(found.values()),
        "all": calls,
        "replaced": counted["pages_unmapped"],
        "moved": counted["pages_moved"],
        "copied": counted["pages_copied"],
        "tails": counted["tails_copied"],
    }


class Ledger:
    """Calls of the core by operation. Not for several threads."""

    def __init__(self, core: KVCache) -> None:
        self._core = core
        self._tokens_a_page = core.page_bytes / core.token_bytes
        self.begin()

    def begin(self) -> None:
        """Forget all, and count from here."""
        self.nanoseconds: dict[str, list[int]] = defaultdict(list)
        """By operation, of each call."""
        self._calls: dict[str, dict[str, int]] = {}
        self._began = self._last = self._read()

    def timed(self, operation: str, call: Callable[..., Result], *arguments: Any) -> Result:
        """A call that makes none of the driver."""
        start = time.perf_counter_ns()
        result = call(*arguments)
        self.nanoseconds[operation].append(time.perf_counter_ns() - start)
        return result

    def counted(self, operation: str, call: Callable[..., Result], *arguments: Any) -> Result:
        """A call that may make some of the driver. If it raises, what it made counts, and its time does not."""
        before = self._read()
        try:
            return self.timed(operation, call, *arguments)
        finally:
            self._count(operation, before, self._read())

    def _count(self, operation: str, before: Counts, after: Counts) -> None:
        if any(after[name] != before[name] for name in ("driver_calls", "pages_moved", "pages_copied")):
            made = by_cause(difference(before, after), self._tokens_a_page)
            known = self._calls.setdefault(operation, dict.fromkeys(made, 0))
            for cause, calls in made.items():
                known[cause] += calls

    def counters(self) -> dict[str, int]:
        """What all counters rose by."""
        return difference(self._began, self._read())

    def causes(self) -> dict[str, dict[str, int]]:
        """Driver calls by operation and cause, those that nothing here made among them."""
        everything = by_cause(self.counters(), self._tokens_a_page)
        own = {cause: sum(made[cause] for made in self._calls.values()) for cause in everything}
        rest = {cause: calls - own[cause] for cause, calls in everything.items()}
        return {**self._calls, **({ELSEWHERE: rest} if rest["all"] or rest["moved"] else {}), "all": everything}

    def _read(self) -> dict[str, Any]:
        return dict(self._core.counters())
