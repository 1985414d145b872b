# SPDX-License-Identifier: Apache-2.0
"""Results for the eye: a table with a column a server, and a verdict a line."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from vt_sglang.chat.compare import Comparison
from vt_sglang.chat.measure import Summary, summarize
from vt_sglang.chat.result import Result

NOTHING = "-"
SHOWN_FAILURES = 5

SUMMARY_ROWS: tuple[tuple[str, Callable[[Summary], float | None], str], ...] = (
    ("requests", lambda s: s.requests, ",d"),
    ("prompt tokens", lambda s: s.prompt_tokens, ",d"),
    ("cached tokens", lambda s: s.cached_tokens, ",d"),
    ("hit rate", lambda s: s.hit_rate, ".1%"),
    ("TTFT p50, ms", lambda s: s.ttft_p50_ms, ",.1f"),
    ("TTFT p99, ms", lambda s: s.ttft_p99_ms, ",.1f"),
    ("inter-token p50, ms", lambda s: s.inter_token_p50_ms, ",.2f"),
    ("inter-token p99, ms", lambda s: s.inter_token_p99_ms, ",.2f"),
    ("output tokens/s", lambda s: s.output_tokens_per_s, ",.1f"),
)
COUNTER_ROWS = (
    ("pages created", "pages_created"),
    ("pages aliased", "pages_aliased"),
    ("pages mapped", "pages_mapped"),
    ("pages unmapped", "pages_unmapped"),
    ("tails extended in place", "tails_extended"),
    ("tails copied", "tails_copied"),
)


def table(results: Sequence[Result]) -> Table:
    """Rows are figures, columns are servers."""
    shown = Table("", title_justify="left")
    for result in results:
        shown.add_column(result.launch.name, justify="right")
    summaries = [summarize(result.played) for result in results]
    for name, figure, form in SUMMARY_ROWS:
        shown.add_row(name, *(_cell(figure(summary), form) for summary in summaries))
    shown.add_row("server start, s", *(_cell(result.start_s, ".1f") for result in results))
    if any(result.vtensor for result in results):
        shown.add_section()
        for name, counter in COUNTER_ROWS:
            shown.add_row(name, *(_cell(_counter(result, counter), ",d") for result in results))
    return shown


def verdicts(results: Sequence[Result], comparison: Comparison | None, planned: int, lost_turns: int) -> list[str]:
    """Lines of rich markup. `planned`: requests in the scripts; `lost_turns`: turns that did not fit the context."""
    lines = []
    if comparison is not None:
        lines += [_outputs(results, comparison), _cached(results, comparison)]
    for result in results:
        lines += _failures(result, planned)
        lines += [_bad(f"{result.launch.name}: {leak}") for leak in result.leaks]
    if not any(result.leaks for result in results):
        lines.append(_good("Leaks: none reported"))
    if lost_turns:
        lines.append(f"Turns left out because they do not fit the context length: {lost_turns}")
    return lines


def _outputs(results: Sequence[Result], comparison: Comparison) -> str:
    difference = comparison.first_difference
    if difference is None:
        same = f"Outputs: identical in all {comparison.requests} requests"
        if comparison.distinct > 1 or comparison.requests < 2:
            return _good(same)
        return f"[yellow]{same}, but each of them says the same, as random weights may: that proves nothing[/]"
    said = (
        f"{result.launch.name} {'no answer' if token is None else token}"
        for result, token in zip(results, difference.ids, strict=True)
    )
    return _bad(
        f"Outputs: different in {comparison.differing} of {comparison.requests} requests, first in dialogue "
        f"{difference.dialogue}, turn {difference.turn}, token {difference.token}, counted from 0 ({', '.join(said)})"
    )


def _cached(results: Sequence[Result], comparison: Comparison) -> str:
    first, second = (result.launch.name for result in results)
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
