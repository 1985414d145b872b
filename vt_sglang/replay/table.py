# SPDX-License-Identifier: Apache-2.0
"""The result of a replay, for the eye."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

NOTHING = "-"
SHOWN_PREFIXES = 10
SHOWN_TIMES = 10
SHOWN_TEXT = 48
BAR = 30


def show(result: dict[str, Any], console: Console) -> None:
    """Print all tables that have rows."""
    trace, model = result["trace"], result["model"]
    console.print(
        f"{escape(trace['path'])}: {trace['requests']:,} requests ({trace['format']}), "
        f"{trace['prompt_tokens']:,} prompt and {trace['output_tokens']:,} output tokens"
        + (f", {_duration(trace['duration_s'])}" if trace["duration_s"] else ""),
        highlight=False,
    )
    if trace["skipped"]:
        console.print(f"[yellow]Broken lines passed over: {trace['skipped']:,}[/]")
    grain = f", in blocks of {result['grain_tokens']:,} tokens" if result["grain_tokens"] > 1 else ""
    console.print(
        f"{escape(model['name'])}: {model['token_bytes']:,} bytes a token, "
        f"{model['page_tokens']:,.4g} tokens a page of {_bytes(model['page_bytes'])}{grain}",
        highlight=False,
    )
    console.print(_rates(result))
    refused = max((entry["vtensor"]["refused_requests"] for entry in result["capacities"]), default=0)
    if refused:
        console.print(f"[yellow]Requests larger than a capacity count as computed: up to {refused:,}[/]")
    if result["without_radix"]:
        console.print(f"Not compared with SGLang's RadixCache: {escape(result['without_radix'])}")
    console.print(_knee(result), highlight=False)
    console.print(_bytes_and_pages(result))
    console.print(_over_time(result))
    if result["reuse_distance"]:
        console.print(_distances(result["reuse_distance"], trace["prompt_tokens"]))
    if result["prefixes"]:
        console.print(_prefixes(result["prefixes"]))


def _rates(result: dict[str, Any]) -> Table:
    shown = Table(
        "capacity",
        title="Hit rate (radix: SGLang's RadixCache; ms: time in the cache's calls)",
        title_justify="left",
    )
    for name in (
        "tokens",
        "hit rate",
        "of infinite",
        "requests hit",
        "radix",
        "ms",
        "radix, ms",
        "faster",
    ):
        shown.add_column(name, justify="right")
    infinite = result["infinite"]
    for entry in result["capacities"]:
        ours, radix = entry["vtensor"], entry["radix"]
        shown.add_row(
            _bytes(entry["bytes"]),
            f"{entry['tokens']:,}",
            f"{ours['hit_rate']:.1%}",
            f"{ours['cached_tokens'] / infinite['cached_tokens']:.1%}" if infinite["cached_tokens"] else NOTHING,
            f"{ours['request_hit_rate']:.1%}",
            f"{radix['hit_rate']:.1%}" if radix else NOTHING,
            f"{ours['seconds'] * 1e3:,.1f}",
            f"{radix['seconds'] * 1e3:,.1f}" if radix else NOTHING,
            f"{entry['times_faster']:.1f} x" if entry["times_faster"] else NOTHING,
        )
    rate, requests = f"{infinite['hit_rate']:.1%}", f"{infinite['request_hit_rate']:.1%}"
    shown.add_row(
        "infinite", NOTHING, rate, "100.0%" if infinite["cached_tokens"] else NOTHING, requests, *[NOTHING] * 4
    )
    return shown


def _knee(result: dict[str, Any]) -> str:
    knee = result["knee"]
    if knee is None:
        return "Knee of the hit-rate curve: none"
    return f"Knee of the hit-rate curve: {knee['hit_rate']:.1%} at {_bytes(knee['bytes'])} ({knee['tokens']:,} tokens)"


def _bytes_and_pages(result: dict[str, Any]) -> Table:
    """Rows are figures, columns are capacities."""
    shown = Table("", title="KV of matched prefixes, and pages at the end", title_justify="left")
    entries = result["capacities"]
    for entry in entries:
        shown.add_column(_bytes(entry["bytes"]), justify="right")
    for kind, name in (("adopted", "adopted"), ("aliased", "aliased"), ("copied", "copied")):
        shown.add_row(name, *(_bytes(entry["vtensor"]["bytes"][kind]) for entry in entries))
    shown.add_section()
    for state, name in (("held", "pages of prefixes"), ("free", "pages free"), ("not_created", "pages never created")):
        shown.add_row(name, *(f"{entry['vtensor']['pages'][state]:,}" for entry in entries))
    shown.add_row("page rounding", *(_bytes(entry["vtensor"]["page_waste_bytes"]) for entry in entries))
    return shown


def _over_time(result: dict[str, Any]) -> Table:
    """Hit rates since the start."""
    shown = Table("time", title="Hit rate since the start", title_justify="left")
    lines = [("infinite", result["infinite"]["over_time"])]
    for entry in result["capacities"]:
        lines.append((_bytes(entry["bytes"]), entry["vtensor"]["over_time"]))
        if entry["radix"]:
            lines.append(("RadixCache", entry["radix"]["over_time"]))
    for name, _ in lines:
        shown.add_column(name, justify="right")
    count = len(lines[0][1])
    for index in _spread(count, SHOWN_TIMES):
        points = [points[index] for _, points in lines]
        shown.add_row(
            _duration(points[0]["time_s"]),
            *(f"{point['cached_tokens'] / point['prompt_tokens']:.1%}" for point in points),
        )
    return shown


def _spread(count: int, most: int) -> list[int]:
    shown = min(count, most)
    return [-(-count * number // shown) - 1 for number in range(1, shown + 1)]


def _distances(histogram: Sequence[dict[str, int]], prompt_tokens: int) -> Table:
    shown = Table(title="Reuse distance of cached tokens", title_justify="left")
    for name in ("up to tokens", "tokens", "of the prompts"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    largest = max(entry["tokens"] for entry in histogram)
    for entry in histogram:
        tokens = entry["tokens"]
        bar = "█" * round(BAR * tokens / largest)
        shown.add_row(f"{entry['up_to_tokens']:,}", f"{tokens:,}", f"{tokens / prompt_tokens:.1%}", bar)
    return shown


def _prefixes(prefixes: Sequence[dict[str, Any]]) -> Table:
    shown = Table(title="Prefixes that save most", title_justify="left")
    for name in ("from", "to", "requests", "saved tokens"):
        shown.add_column(name, justify="right")
    shown.add_column("begins with", overflow="ellipsis", no_wrap=True)
    for entry in prefixes[:SHOWN_PREFIXES]:
        said = entry.get("text")
        begins = " ".join(map(str, entry["first_ids"][:4])) if said is None else " ".join(said.split())
        if len(begins) > SHOWN_TEXT:
            begins = begins[: SHOWN_TEXT - 1] + "…"
        counts = (entry[name] for name in ("start", "end", "requests", "saved_tokens"))
        shown.add_row(*(f"{count:,}" for count in counts), escape(begins))
    return shown


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:,.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} TiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
