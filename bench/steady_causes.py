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
    "alias": "a page of the prefix mapped",
    "fresh": "a page to write to mapped",
    "guard": "made readable behind the end",
    "created": "a page created",
    "released": "a page given back",
    "copied": "a tail copied",
    "other": "pages cleared, and unmapped without another in their place",
}
ELSEWHERE = "elsewhere"
"""The operation of driver calls that no call of the scheduler made."""


def difference(before: Counts, after: Counts) -> dict[str, int]:
    """Of two readings of the core's counters; those that are no numbers are left out."""
    return {name: count - before.get(name, 0) for name, count in after.items() if isinstance(count, int)}


def by_cause(counted: Counts) -> dict[str, int]:
    """Driver calls of a difference of counters by cause, and in `all`; `replaced` says how many of the pages mapped
    took the place of others, for which a GPU's driver has to unmap as well."""
    alias = counted["pages_aliased"] - counted["pages_adopted"]
    guard = counted["guards_mapped"]
    found = {
        "alias": alias,
        "fresh": counted["pages_mapped"] - alias - guard,
        "guard": guard,
        "created": counted["pages_created"] + counted["creations_failed"],
        "released": counted["pages_released"],
        "copied": counted["tails_copied"],
    }
    calls = counted["driver_calls"]
    return found | {"other": calls - sum(found.values()), "all": calls, "replaced": counted["pages_unmapped"]}


class Ledger:
    """Calls of the core by operation. Not for several threads."""

    def __init__(self, core: KVCache) -> None:
        self._core = core
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
        """A call that may make some of the driver."""
        before = self._read()
        result = self.timed(operation, call, *arguments)
        after = self._read()
        if after["driver_calls"] != before["driver_calls"]:
            made = by_cause(difference(before, after))
            known = self._calls.setdefault(operation, dict.fromkeys(made, 0))
            for cause, calls in made.items():
                known[cause] += calls
        return result

    def counters(self) -> dict[str, int]:
        """What all counters rose by."""
        return difference(self._began, self._read())

    def causes(self) -> dict[str, dict[str, int]]:
        """Driver calls by operation and cause, those that nothing here made among them."""
        everything = by_cause(self.counters())
        own = {cause: sum(made[cause] for made in self._calls.values()) for cause in everything}
        rest = {cause: calls - own[cause] for cause, calls in everything.items()}
        return {**self._calls, **({ELSEWHERE: rest} if rest["all"] else {}), "all": everything}

    def _read(self) -> dict[str, Any]:
        return dict(self._core.counters())
