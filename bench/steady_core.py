# SPDX-License-Identifier: Apache-2.0
"""The case `core`: a load on the core alone, without a server or a model, and what it costs there."""

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from steady_causes import BESIDES, CAUSES, Ledger
from steady_engine import Engine, Pace
from steady_load import Played, Steady

from vt_sglang._core import KVCache
from vt_sglang.chat.stats import percentile

VOCABULARY = 128_256
PERCENTS = (50, 99, 100)


@dataclass(frozen=True)
class Shape:
    """How the cache is made."""

    driver: str
    page_bytes: int
    token_bytes: int
    slots: int
    """Virtual tensors for requests."""
    slot_tokens: int
    budget_pages: int
    move_pages: bool
    """Whether contents are moved where mapping would cost more."""
    map_ahead: bool = False
    """Whether a thread maps what is likely to be needed, as a server's does. Its calls are then counted to whatever is
    called meanwhile."""
    copy_from_pages: int = 256
    """Pages of a held prefix from which on it is copied, where pages are free."""

    def make(self) -> KVCache:
        """ValueError, DriverError: it cannot be."""
        return KVCache(
            driver=self.driver,
            page_bytes=self.page_bytes,
            token_bytes=self.token_bytes,
            slots=self.slots + 1,
            slot_tokens=self.slot_tokens,
            budget_pages=self.budget_pages,
            move_pages=self.move_pages,
            map_ahead=self.map_ahead,
            copy_from_pages=self.copy_from_pages,
        )


def replay(shape: Shape, steady: Steady, pace: Pace, *, check: bool = False) -> list[dict[str, Any]]:
    """Play all passes, and return the figures of each.

    Args:
        check: prove the core's invariants after each pass.

    Raises:
        ValueError, DriverError, TooSmallError, OutOfPages: it cannot be played.
    """
    core = shape.make()
    ledger = Ledger(core)
    engine = Engine(core, pace, ledger)
    passes = []
    for number in range(steady.passes):
        source = Played(steady, number, VOCABULARY)
        gc.collect()
        ledger.begin()
        start = time.perf_counter()
        engine.play(source, steady.load.clients)
        seconds = time.perf_counter() - start
        load = steady.load
        prompts = steady.conversations * sum(map(steady.prompt_tokens, range(load.turns)))
        tokens = (prompts, steady.requests * load.output_tokens)
        passes.append({"requests": steady.requests} | figures(core, engine, ledger, tokens, seconds))
        if check:
            core.check()
    return passes


def figures(core: KVCache, engine: Engine, ledger: Ledger, tokens: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Of what an engine played last. tokens: of all prompts, and of all answers."""
    prompts, outputs = tokens
    counters = ledger.counters()
    return {
        "seconds": seconds,
        "prompt_tokens": prompts,
        "output_tokens": outputs,
        "cached_tokens": engine.matched_tokens,
        "steps": engine.steps,
        "waits_for_forwards": engine.waits_for_forwards,
        "driver_calls_per_1000_tokens": 1e3 * counters["driver_calls"] / (prompts + outputs),
        "pages_moved_per_1000_tokens": 1e3 * counters["pages_moved"] / (prompts + outputs),
        "driver_share": counters["driver_ns"] / 1e9 / seconds,
        "core_share": sum(map(sum, ledger.nanoseconds.values())) / 1e9 / seconds,
        "counters": counters,
        "causes": ledger.causes(),
        "microseconds": {name: times(spent) for name, spent in sorted(ledger.nanoseconds.items())},
        "usage": dict(core.usage()),
    }


def times(nanoseconds: Sequence[int]) -> dict[str, float]:
    """How many, their sum, and percentiles; in microseconds."""
    found = {f"p{percent}": (percentile(nanoseconds, percent) or 0.0) / 1e3 for percent in PERCENTS}
    return {"calls": len(nanoseconds), "sum": sum(nanoseconds) / 1e3} | found


def returning_bind_us(figures: dict[str, Any]) -> float | None:
    """p99 of the binds of conversations that return, of the later turns or of the last, whichever is more."""
    found = [figures["microseconds"].get(name) for name in ("bind, next", "bind, last turn")]
    return max((it["p99"] for it in found if it is not None), default=None)


def result(shape: Shape, steady: Steady, pace: Pace, passes: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept."""
    return {"cache": asdict(shape), "load": asdict(steady), "pace": asdict(pace), "passes": passes}


def show(console: Console, found: dict[str, Any]) -> None:
    """What each pass cost, and where the last one's driver calls and time went."""
    passes = found["passes"]
    cache, steady = found["cache"], found["load"]
    console.print(
        f"{steady['conversations']} conversations of {steady['load']['turns']} turns, {steady['load']['clients']} at a "
        f"time; {cache['budget_pages']:,} pages, {cache['slots']} slots, driver {cache['driver']}, "
        f"pages {'moved' if cache['move_pages'] else 'mapped'}",
        highlight=False,
    )
    table = Table("", *(f"pass {number}" for number in range(1, len(passes) + 1)))
    lines = {
        "driver calls per 1,000 tokens": lambda it: f"{it['driver_calls_per_1000_tokens']:.4f}",
        "pages moved per 1,000 tokens": lambda it: f"{it['pages_moved_per_1000_tokens']:.4f}",
        "driver, ms": lambda it: f"{it['counters']['driver_ns'] / 1e6:,.2f}",
        "driver, of the time": lambda it: f"{it['driver_share']:.2%}",
        "core, of the time": lambda it: f"{it['core_share']:.2%}",
        "seconds": lambda it: f"{it['seconds']:.2f}",
        "steps": lambda it: f"{it['steps']:,}",
        "waits for forwards": lambda it: f"{it['waits_for_forwards']:,}",
        "prompt tokens": lambda it: f"{it['prompt_tokens']:,}",
        "cached": lambda it: f"{it['cached_tokens'] / it['prompt_tokens']:.2%}",
        **{
            f"{name}: p50 / p99, us": lambda it, name=name: _percentiles(it, name)
            for name in ("bind, new", "bind, next", "bind, last turn", "grow, decode")
        },
    }
    for name, text in lines.items():
        table.add_row(name, *(text(it) for it in passes))
    known = {*passes[-1]["counters"]} - {"driver_ns"}
    for name in passes[-1]["counters"]:
        if name in known and any(it["counters"][name] for it in passes):
            table.add_row(name, *(f"{it['counters'][name]:,}" for it in passes))
    console.print(table)
    last = passes[-1]
    show_causes(console, last, "driver calls, last pass")
    spent = Table("core's calls, last pass", "calls", "p50, us", "p99, us", "max, us", "sum, ms")
    for name, it in last["microseconds"].items():
        spent.add_row(name, f"{it['calls']:,}", *(f"{it[f'p{p}']:,.1f}" for p in PERCENTS), f"{it['sum'] / 1e3:,.1f}")
    console.print(spent)


def show_causes(console: Console, figures: dict[str, Any], title: str) -> None:
    """Driver calls by the operation that made them, and by cause."""
    columns = (*CAUSES, "all", *BESIDES)
    causes = Table(title, *columns)
    for operation, made in figures["causes"].items():
        causes.add_row(operation, *(f"{made[it]:,}" for it in columns))
    console.print(causes)
    console.print(*(f"{name}: {text}." for name, text in (CAUSES | BESIDES).items()), style="dim", highlight=False)


def _percentiles(figures: dict[str, Any], operation: str) -> str:
    found = figures["microseconds"].get(operation)
    return "-" if found is None else f"{found['p50']:,.1f} / {found['p99']:,.1f}"
