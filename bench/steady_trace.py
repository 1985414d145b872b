# SPDX-License-Identifier: Apache-2.0
"""The case `trace`: a recorded trace on the core, with many requests at a time.

The requests come in the order of the trace, as fast as `--clients` allow: time is compressed until the cache is loaded.
What is found is put beside an ideal cache of the same capacity, which evicts single tokens, least recently used first,
and holds nothing for requests at work. In every pass of `--passes` the trace comes with other ids, while memory is full
of the old ones; the figures are those of the last.
"""

import argparse
import time
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import steady_core
import steady_options as options
from rich.console import Console
from rich.table import Table
from steady_causes import Ledger
from steady_engine import Engine, Pace
from steady_load import Turn

from vt_sglang.layout import Geometry
from vt_sglang.replay import distances, sizes, texts, trace, work

WITHIN = 0.02
OTHER_IDS = 56
"""Bit of the ids that the number of a pass is put at."""
MOST_PASSES = 64


class Recorded:
    """Requests of a trace, each by itself and in its order."""

    def __init__(self, works: Sequence[work.Work], number: int) -> None:
        """number: of the pass; the ids of each are others."""
        self._works = works
        self._above = np.int64(number << OTHER_IDS)
        self._next = 0

    def first(self) -> int | None:
        """The next request of the trace."""
        self._next += 1
        return self._next - 1 if self._next <= len(self._works) else None

    def after(self, _: int) -> int | None:
        """The next request of the trace."""
        return self.first()

    def request(self, number: int) -> Turn:
        """All of it; a trace does not say whose next turn it is."""
        it = self._works[number]
        ids = array("q", (np.frombuffer(it.units, dtype=np.int64) ^ self._above).tobytes())
        return Turn("any", ids, it.prompt, output_tokens(it), it.namespace)


def output_tokens(it: work.Work) -> int:
    """A server generates at least one; the last one is not recorded."""
    return len(it.units) - it.prompt + 1


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Replay at each capacity.

    Raises:
        ValueError (TraceError, SizeError), OSError: it makes no sense, or there is no such trace.
    """
    refuse_passes(given.passes)
    works = work.prepare(trace.read(given.trace, texts.make(None)).requests, 1)
    token_bytes = given.token_bytes or sizes.model(str(given.model), given.kv_dtype).token_bytes
    driver, page_bytes = options.memory(given, token_bytes)
    geometry = Geometry(page_bytes, token_bytes)
    longest = max(it.prompt + output_tokens(it) for it in works)
    found = distances.measure(works)
    slots = given.slots or 2 * given.clients
    if slots < given.clients:
        raise ValueError(f"--slots: {slots} are too few for {given.clients} clients")
    capacities = []
    for text in given.capacity.split(","):
        capacity = sizes.parse_capacity(text, token_bytes)
        pages = capacity // page_bytes
        if pages < geometry.pages_for(longest):
            raise ValueError(f"--capacity {text}: a request of the trace has {longest:,} tokens")
        shape = steady_core.Shape(driver, page_bytes, token_bytes, slots, longest, pages, options.moves(given, driver))
        capacities.append(replay(shape, works, found, options.pace(given), given.clients, given.passes))
    show(console, capacities)
    targets = {f"cached share at {it['tokens']:,} tokens, from the ideal one": target(it) for it in capacities}
    return {"clients": given.clients, "requests": len(works), "capacities": capacities, "targets": targets}


def refuse_passes(passes: int) -> None:
    """ValueError: more than have ids of their own."""
    if passes > MOST_PASSES:
        raise ValueError(f"--passes: at most {MOST_PASSES}")


def replay(
    shape: steady_core.Shape,
    works: Sequence[work.Work],
    found: distances.Distances,
    pace: Pace,
    clients: int,
    passes: int,
) -> dict[str, Any]:
    """Figures of the last of so many passes on the core, beside the ideal ones.

    Args:
        found: distances of the same requests.
        clients: requests at work at a time.
    """
    core = shape.make()
    ledger = Ledger(core)
    engine = Engine(core, pace, ledger)
    tokens = sum(it.prompt for it in works), sum(map(output_tokens, works))
    calls = []
    for number in range(passes):
        ledger.begin()
        start = time.perf_counter()
        engine.play(Recorded(works, number), clients)
        played = steady_core.figures(core, engine, ledger, tokens, time.perf_counter() - start)
        calls.append(played["driver_calls_per_1000_tokens"])
    capacity = Geometry(shape.page_bytes, shape.token_bytes).tokens_in(shape.budget_pages)
    rates = beside_ideal(played["cached_tokens"] / tokens[0], found, capacity, tokens[0])
    return {"tokens": capacity, "pages": shape.budget_pages, "driver_calls_by_pass": calls} | rates | played


def beside_ideal(rate: float, found: distances.Distances, capacity: int, prompts: int) -> dict[str, float | None]:
    """A cached share of prompt tokens, and that of the ideal cache of as many tokens.

    Args:
        prompts: tokens of all prompts.
    """
    ideal = found.within(capacity) / prompts
    return {"hit_rate": rate, "ideal_hit_rate": ideal, "of_ideal": rate / ideal if ideal else None}


def target(it: dict[str, Any]) -> dict[str, Any]:
    """How far the cached share may be from the ideal one."""
    distance = abs(it["hit_rate"] - it["ideal_hit_rate"])
    return {"measured": distance, "most": WITHIN, "reached": distance <= WITHIN}


def show(console: Console, capacities: Sequence[dict[str, Any]]) -> None:
    """What was found at each capacity, and what the driver did."""
    table = Table(
        "tokens", "hit rate", "ideal", "of the ideal", "driver calls / 1,000 tokens, by pass", "moved", "bind p99, us"
    )
    for it in capacities:
        table.add_row(
            f"{it['tokens']:,}",
            f"{it['hit_rate']:.2%}",
            f"{it['ideal_hit_rate']:.2%}",
            "-" if it["of_ideal"] is None else f"{it['of_ideal']:.1%}",
            ", ".join(f"{calls:.3f}" for calls in it["driver_calls_by_pass"]),
            f"{it['pages_moved_per_1000_tokens']:.2f}",
            f"{it['microseconds']['bind, any']['p99']:,.1f}",
        )
    console.print(table)
    for it in capacities:
        steady_core.show_causes(console, it, f"driver calls, {it['tokens']:,} tokens")
