# SPDX-License-Identifier: Apache-2.0
"""The highest load under which a server keeps its limits.

The load is doubled until it fails (or halved until it passes), then the gap is bisected until it is within a tolerance.
Whether a load passes is a random outcome near the border, and need not be monotone: a load that fails is tried once
more, with other arrival times, and fails only if it does so twice. The number of probes is bounded.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

# As far as a rate is halved from where the search began.
LEAST_SHARE = 1 / 1024

Ended = Literal["tolerance", "probes", "never failed", "never passed", "server lost"]


@dataclass(frozen=True)
class Probe:
    load: float
    attempt: int
    """0, or 1 for the repetition of a failed one."""
    passed: bool
    reasons: tuple[str, ...]
    """Why it failed."""
    figures: dict[str, Any] = field(default_factory=dict)
    lost: bool = False
    """The server answers no more, so that further probes are of no use."""


@dataclass
class Search:
    highest: float | None = None
    """The highest load that passed, below any that failed."""
    lowest_failed: float | None = None
    ended: Ended = "probes"
    """Why it ended: at the tolerance, or before that."""
    probes: list[Probe] = field(default_factory=list)


class _NoMoreProbesError(Exception):
    pass


async def search(
    probe: Callable[[float, int], Awaitable[Probe]],
    *,
    start: float,
    whole: bool,
    tolerance: float,
    max_probes: int,
    found: Search | None = None,
) -> Search:
    """Search.

    Args:
        probe: measures at a load; the second argument is the attempt.
        start: where to begin.
        whole: loads are whole numbers, at least 1.
        tolerance: the search ends when the lowest failed load is at most so much above the highest passed one,
            relative to it; or next to it, for whole numbers.
        max_probes: bound of all probes, repetitions included.
        found: is filled in as the search goes on.
    """
    found = found or Search()

    async def passes(load: float) -> bool:
        for attempt in range(2):
            if len(found.probes) == max_probes:
                raise _NoMoreProbesError
            result = await probe(load, attempt)
            found.probes.append(result)
            if result.lost:
                found.ended = "server lost"
                raise _NoMoreProbesError
            if result.passed:
                found.highest = load
                return True
        found.lowest_failed = load
        return False

    try:
        await _bracket(passes, found, start, whole)
        while found.highest is not None and found.lowest_failed is not None:
            low, high = found.highest, found.lowest_failed
            if high <= low * (1 + tolerance) or (whole and high - low <= 1):
                found.ended = "tolerance"
                break
            await passes((low + high) // 2 if whole else math.sqrt(low * high))
    except _NoMoreProbesError:
        if found.ended != "server lost":
            found.ended = _unfinished(found)
    return found


async def _bracket(passes: Callable[[float], Awaitable[bool]], found: Search, start: float, whole: bool) -> None:
    """Find a load that passes, and another one that fails."""
    load = start
    if await passes(load):
        while await passes(load := load * 2):
            pass
        return
    least = 1.0 if whole else start * LEAST_SHARE
    while load > least:
        load = max(least, load // 2 if whole else load / 2)
        if await passes(load):
            return
    found.ended = "never passed"


def _unfinished(found: Search) -> Ended:
    if found.highest is None:
        return "never passed"
    return "never failed" if found.lowest_failed is None else "probes"
