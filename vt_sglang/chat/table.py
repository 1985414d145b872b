# SPDX-License-Identifier: Apache-2.0
"""Results for the eye: a table with a column a server, and a verdict a line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from vt_sglang.chat import figures
from vt_sglang.chat.compare import Comparison
from vt_sglang.chat.measure import Limits, Summary, answered_requests, summarize
from vt_sglang.chat.result import Result
from vt_sglang.chat.saturate import Search
from vt_sglang.chat.settings import Settings
from vt_sglang.chat.stats import percentile

NOTHING = "-"
SHOWN_FAILURES = 5

SUMMARY_ROWS: tuple[tuple[str, Callable[[Summary], float | None], str], ...] = (
    ("requests", lambda s: s.requests, ",d"),
    ("prompt tokens", lambda s: s.prompt_tokens, ",d"),
    ("cached tokens", lambda s: s.cached_tokens, ",d"),
    ("hit rate", lambda s: s.hit_rate, ".1%"),
    ("TTFT p50, ms", lambda s: s.ttft_p50_ms, ",.1f"),
    ("TTFT p90, ms", lambda s: s.ttft_p90_ms, ",.1f"),
    ("TTFT p99, ms", lambda s: s.ttft_p99_ms, ",.1f"),
    ("inter-token p50, ms", lambda s: s.inter_token_p50_ms, ",.2f"),
    ("inter-token p90, ms", lambda s: s.inter_token_p90_ms, ",.2f"),
    ("inter-token p99, ms", lambda s: s.inter_token_p99_ms, ",.2f"),
    ("latency p50, ms", lambda s: s.latency_p50_ms, ",.1f"),
    ("latency p99, ms", lambda s: s.latency_p99_ms, ",.1f"),
    ("requests/s", lambda s: s.requests_per_s, ",.2f"),
    ("output tokens/s", lambda s: s.output_tokens_per_s, ",.1f"),
)
LIMIT_ROWS: tuple[tuple[str, Callable[[Summary], float | None], str], ...] = (
    ("requests within limits", lambda s: s.within_limits, ",d"),
    ("goodput, requests/s", lambda s: s.goodput_per_s, ",.2f"),
)
COUNTER_ROWS = (
    ("pages created", "pages_created"),
    ("pages aliased", "pages_aliased"),
    ("pages mapped", "pages_mapped"),
    ("pages unmapped", "pages_unmapped"),
    ("tails extended in place", "tails_extended"),
    ("tails copied", "tails_copied"),
)


def table(results: Sequence[Result], limits: Limits) -> Table:
    """Rows are figures, columns are servers."""
    shown = Table("", title_justify="left")
    for result in results:
        shown.add_column(result.launch.name, justify="right")
    summaries = [summarize(result.played, limits) for result in results]
    for name, figure, form in (*SUMMARY_ROWS, *(LIMIT_ROWS if limits else ())):
        shown.add_row(name, *(_cell(figure(summary), form) for summary in summaries))
    shown.add_row("server start, s", *(_cell(result.start_s, ".1f") for result in results))
    if any(result.vtensor for result in results):
        shown.add_section()
        for name, counter in COUNTER_ROWS:
            shown.add_row(name, *(_cell(_counter(result, counter), ",d") for result in results))
    return shown


def figures_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Of repeats: medians, means with their intervals, ratios with theirs, and verdicts."""
    header, lines = figures.table(rows)
    caption = "median; mean ± half of its 95 % confidence interval. Ratios with theirs"
    shown = Table(header[0], *header[1:], caption=caption, caption_justify="left")
    for line in lines:
        shown.add_row(*line)
    return shown


def search_table(sides: Mapping[str, Sequence[Result]], settings: Settings) -> Table:
    """The highest load of each server, and how it did there."""
    asked = settings.saturation
    assert asked is not None
    unit = f"{settings.load.rate_of.value}/s" if settings.load.is_open else "clients"
    shown = Table("", title_justify="left")
    searches = [(runs[0], runs[0].search) for runs in sides.values()]
    for result, _ in searches:
        shown.add_column(result.launch.name, justify="right")
    found = [(search.highest, search.lowest_failed, search) for _, search in searches if search is not None]
    shown.add_row(f"highest load, {unit}", *(_cell(highest, ",.4g") for highest, _, _ in found))
    shown.add_row(f"lowest load that failed, {unit}", *(_cell(failed, ",.4g") for _, failed, _ in found))
    shown.add_row("probes", *(str(len(search.probes)) for _, _, search in found))
    shown.add_row("the search ended at", *(search.ended for _, _, search in found))
    best = [_best(search) for _, _, search in found]
    percent = f"p{asked.percentile:g}"
    shown.add_section()
    shown.add_row(f"TTFT {percent} there, ms", *(_cell(it.get("ttft_ms"), ",.1f") for it in best))
    shown.add_row(f"inter-token {percent} there, ms", *(_cell(it.get("inter_token_ms"), ",.2f") for it in best))
    tokens = [it.get("summary", {}).get("output_tokens_per_s") for it in best]
    shown.add_row("output tokens/s there", *(_cell(it, ",.1f") for it in tokens))
    return shown


def _best(search: Search) -> dict[str, Any]:
    """The figures of the probe that passed at the highest load."""
    passed = [probe for probe in search.probes if probe.passed and probe.load == search.highest]
    return passed[-1].figures if passed else {}


def lateness(sides: Mapping[str, Sequence[Result]]) -> list[str]:
    """How late the generator of an open loop was: its own part of the waits that latencies include."""
    lines = []
    for name, runs in sides.items():
        requests = [request for run in runs for request in answered_requests(run.played)]
        late = [percentile((request.late_ms for request in requests), percent) or 0.0 for percent in (50, 99, 100)]
        held = percentile((request.held_s * 1e3 for request in requests), 99) or 0.0
        lines.append(
            f"Generator on {name}: late by p50 {late[0]:.1f}, p99 {late[1]:.1f}, at most {late[2]:.1f} ms; the cap on "
            f"requests in flight held back p99 {held:.1f} ms. Times count from when requests were due."
        )
    return lines


def verdicts(
    sides: Mapping[str, Sequence[Result]],
    comparisons: Mapping[str, Comparison],
    planned: int | None,
    lost_turns: int,
    *,
    exact: bool,
) -> list[str]:
    """Lines of rich markup.

    Args:
        planned: requests in the scripts; None: failures are told elsewhere.
        lost_turns: turns that did not fit the context.
        exact: whether a difference in outputs is an error.
    """
    lines = []
    reference = next(iter(sides))
    for name, comparison in comparisons.items():
        beside = "" if len(comparisons) == 1 else f", {name} and {reference}"
        lines += [_outputs(reference, name, comparison, beside, exact), _cached(reference, name, comparison)]
    results = [result for runs in sides.values() for result in runs]
    for result in results:
        if planned is not None:
            lines += _failures(result, planned)
        lines += [_bad(f"{result.launch.name}: {leak}") for leak in result.leaks]
    if not any(result.leaks for result in results):
        lines.append(_good("Leaks: none reported"))
    if lost_turns:
        lines.append(f"Turns left out because they do not fit the context length: {lost_turns}")
    return lines


def _outputs(first: str, second: str, comparison: Comparison, beside: str, exact: bool) -> str:
    difference = comparison.first_difference
    if difference is None:
        same = f"Outputs{beside}: identical in all {comparison.requests} requests"
        if comparison.distinct > 1 or comparison.requests < 2:
            return _good(same)
        return f"[yellow]{same}, but each of them says the same, as random weights may: that proves nothing[/]"
    said = (
        f"{name} {'no answer' if token is None else token}"
        for name, token in zip((first, second), difference.ids, strict=True)
    )
    text = (
        f"Outputs{beside}: different in {comparison.differing} of {comparison.requests} requests, first in dialogue "
        f"{difference.dialogue}, turn {difference.turn}, token {difference.token}, counted from 0 ({', '.join(said)})"
    )
    return _bad(text) if exact else f"[yellow]{escape(text)}[/]"


def _cached(first: str, second: str, comparison: Comparison) -> str:
    scope = "in every request" if comparison.cached_by_request else "in total"
    if comparison.cached_at_least:
        return _good(f"Cached tokens: {second} has at least as many as {first} {scope}")
    return f"[yellow]Cached tokens: {second} does not have as many as {first} {scope}[/]"


def _failures(result: Result, planned: int) -> list[str]:
    failed = [request for request in result.played.requests if request.error is not None]
    name, missing = result.launch.name, planned - len(result.played.requests)
    lines = [
        _bad(f"Failed on {name}: dialogue {request.dialogue}, turn {request.turn}: {request.error}")
        for request in failed[:SHOWN_FAILURES]
    ]
    if len(failed) > SHOWN_FAILURES:
        lines.append(_bad(f"Failed on {name}: {len(failed) - SHOWN_FAILURES} more requests"))
    if missing:
        lines.append(_bad(f"Not played on {name}, because of what failed before: {missing} of {planned} requests"))
    return lines


def _counter(result: Result, name: str) -> int | None:
    counters: dict[str, Any] = result.vtensor["counters"] if result.vtensor else {}
    return counters.get(name)


def _cell(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _good(text: str) -> str:
    return f"[green]{escape(text)}[/]"


def _bad(text: str) -> str:
    return f"[red]{escape(text)}[/]"
