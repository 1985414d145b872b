# SPDX-License-Identifier: Apache-2.0
"""What a trace on servers came to, as text and lines of cells, for the terminal and for documents."""

from collections.abc import Callable
from typing import Any

Cell = Callable[[dict[str, Any]], str]


def _plain(key: str, form: str) -> Cell:
    return lambda it: "-" if it.get(key) is None else format(it[key], form)


ROWS: dict[str, Cell] = {
    "memory, tokens": _plain("total_tokens", ","),
    "cached, of prompt tokens": _plain("hit_rate", ".2%"),
    "of an LRU of tokens": _plain("ideal_hit_rate", ".2%"),
    "cached, of the LRU's": _plain("of_ideal", ".1%"),
    "seconds": _plain("seconds", ",.1f"),
    "requests at the server, mean / most": lambda it: f"{it['at_server_mean']:,.1f} / {it['at_server_most']:,}",
    "of them before their first token, mean": _plain("before_first_token_mean", ",.1f"),
    "prompt tokens computed/s": lambda it: f"{(it['prompt_tokens'] - it['cached_tokens']) / it['seconds']:,.0f}",
    "output tokens/s": _plain("output_tokens_per_s", ",.1f"),
    "TTFT p50 / p99, ms": lambda it: f"{it['ttft_p50_ms']:,.1f} / {it['ttft_p99_ms']:,.1f}",
    "inter-token p50, ms": _plain("inter_token_p50_ms", ",.2f"),
    "sent late, p99, ms": _plain("late_p99_ms", ",.1f"),
}
DRIVER_ROWS: dict[str, Cell] = {
    "driver calls per 1,000 tokens": _plain("driver_calls_per_1000_tokens", ".4f"),
    "pages moved per 1,000 tokens": _plain("pages_moved_per_1000_tokens", ".2f"),
    "scheduler in the driver, of the time": _plain("share", ".3%"),
}


def load(found: dict[str, Any]) -> str:
    """What was played, and how."""
    trace, passes = found["trace"], found["count_of_passes"]
    left_out = f" ({trace['skipped']:,} longer ones left out)" if trace["skipped"] else ""
    if found["speed"] is None:
        how = f"in its order, {found['clients']} at a time"
    else:
        how = f"sent at its times, {trace['seconds']:,.0f} s, divided by {found['speed']:g}"
    which = f"; the last of {passes} passes, each with other ids" if passes > 1 else ""
    return (
        f"{trace['name']}: {trace['requests']:,} requests{left_out} with {trace['prompt_tokens']:,} prompt tokens and "
        f"{trace['output_tokens']:,} of answers, {how}{which}; servers one after the other."
    )


def servers(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A header, and lines of cells: a column a server."""
    sides, drivers = found["servers"], found["drivers"]
    rows = [[name, *map(cell, sides.values())] for name, cell in ROWS.items()]
    if drivers:
        rows += [[name, *(cell(drivers.get(side, {})) for side in sides)] for name, cell in DRIVER_ROWS.items()]
    return ["", *sides], rows


def core(it: dict[str, Any]) -> str:
    """What the core alone came to."""
    cache = it["cache"]
    return (
        f"On the core alone ({cache['driver']} driver, {it['pages']:,} pages of {cache['page_bytes'] / 2**20:g} MiB, "
        f"{it['clients']} at a time): {it['hit_rate']:.2%} cached where an LRU of tokens has "
        f"{it['ideal_hit_rate']:.2%}; {it['driver_calls_per_1000_tokens']:.4f} driver calls and "
        f"{it['pages_moved_per_1000_tokens']:.2f} pages moved per 1,000 tokens."
    )
