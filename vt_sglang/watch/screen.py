# SPDX-License-Identifier: Apache-2.0
"""How a view looks in a terminal."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vt_sglang.watch.view import View

STYLES = {"pinned": "magenta", "evictable": "green", "free": "cyan", "not_created": "bright_black", "withheld": "red"}
MARKS = {"pinned": "█", "evictable": "▓", "free": "▒", "not_created": "░", "withheld": "x"}
"""States can be told apart without colours too."""
WORDS = {"not_created": "not created"}
FIRST_IDS = 6
UNKNOWN = "-"


def screen(view: View, title: str, status: str | None, width: int, rows: int) -> RenderableType:
    """Everything of one moment.

    Args:
        status: what is wrong with the server now, if anything.
        width: columns of the terminal.
        rows: busiest prefixes at most.
    """
    parts: list[RenderableType] = [Text(title, style="bold", no_wrap=True, overflow="ellipsis")]
    if status is not None:
        parts.append(Text(status, style="bold red"))
    parts.append(_side_by_side(_requests(view), _cache(view)))
    if view.pages is not None:
        parts.append(_side_by_side(_memory(view, max(width // 2 - 4, 10)), _work(view)))
    elif view.token_usage is not None:
        parts.append(_panel("memory", _rows([("KV cache in use", _percent(view.token_usage))])))
    if view.busiest is not None:
        parts.append(_panel("busiest prefixes", _busiest(view, rows)))
    parts += [Text(f"Note: {note}", style="yellow") for note in view.notes]
    return Group(*parts)


def _side_by_side(left: RenderableType, right: RenderableType) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(left, right)
    return grid


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="bright_black")


def _rows(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    return grid


def _requests(view: View) -> Panel:
    rows = [
        ("running", _count(view.running)),
        ("queued", _count(view.queued)),
        ("requests/s", _rate(view.requests_per_s)),
        ("output tokens/s", _rate(view.output_tokens_per_s)),
        ("prompt tokens/s", _rate(view.prompt_tokens_per_s)),
        ("KV read by attention", show_bytes(view.kv_read_bytes_per_s, "/s")),
    ]
    return _panel("requests", _rows(rows))


def _cache(view: View) -> Panel:
    rows = [
        ("hit rate now", _percent(view.hit_rate_now)),
        ("hit rate over all", _percent(view.hit_rate)),
        ("prompt tokens", _count(view.prompt_tokens)),
        ("cached tokens", _count(view.cached_tokens)),
    ]
    for source, tokens in (view.cached_by_source or {}).items():
        share = f" ({tokens / view.cached_tokens:.0%})" if view.cached_tokens else ""
        rows.append((f"  {source}", f"{tokens:,.0f}{share}"))
    return _panel("prefix cache", _rows(rows))


def _memory(view: View, bar_width: int) -> Panel:
    pages = view.pages or {}
    rows = []
    for state, count in pages.items():
        size = UNKNOWN if view.page_bytes is None else show_bytes(count * view.page_bytes)
        label = f"[{STYLES[state]}]{MARKS[state]}[/] {WORDS.get(state, state)}"
        rows.append((label, f"{count:,.0f} pages, {size}"))
    rows.append(("  budget", f"{sum(pages.values()):,.0f} pages, {show_bytes(view.budget_bytes)}"))
    return _panel("memory", Group(_bar(pages, bar_width), _rows(rows)))


def _bar(pages: dict[str, float], width: int) -> Text:
    """A bar of all states, each as long as its share; by largest remainders, so that the whole is exact."""
    total = sum(pages.values())
    bar = Text(no_wrap=True)
    if total <= 0:
        return bar
    exact = {state: count * width / total for state, count in pages.items()}
    lengths = {state: int(length) for state, length in exact.items()}
    by_remainder = sorted(exact, key=lambda state: exact[state] - lengths[state], reverse=True)
    for state in by_remainder[: width - sum(lengths.values())]:
        lengths[state] += 1
    for state, length in lengths.items():
        bar.append(MARKS[state] * length, style=STYLES[state])
    return bar


def _work(view: View) -> Panel:
    rows = [
        ("driver calls/s", _rate(view.driver_calls_per_s)),
        ("time in the driver now", _percent(view.driver_share, 2)),
        ("driver calls", _count(view.driver_calls)),
        ("driver seconds", UNKNOWN if view.driver_seconds is None else f"{view.driver_seconds:,.3f}"),
        ("tokens evicted/s", _rate(view.evicted_tokens_per_s)),
        ("tokens evicted", _count(view.evicted_tokens)),
        ("KV reused", show_bytes(view.kv_reused_bytes)),
    ]
    return _panel("driver and evictions", _rows(rows))


def _busiest(view: View, rows: int) -> RenderableType:
    if not view.busiest:
        return Text("no prefix was found twice yet", style="bright_black")
    table = Table(box=None, expand=True, padding=(0, 1), header_style="bright_black")
    for heading in ("tokens saved", "hits", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("namespace", no_wrap=True)
    table.add_column("first ids", no_wrap=True, overflow="ellipsis", ratio=1)
    for it in view.busiest[:rows]:
        ids = ", ".join(map(str, it["first_ids"][:FIRST_IDS]))
        span = f"{it['start']:,}-{it['end']:,}"
        table.add_row(f"{it['saved_tokens']:,}", f"{it['hits']:,}", span, it["namespace"] or "", ids)
    return table


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}%}"


def show_bytes(value: float | None, per: str = "") -> str:
    """In the largest of B, KiB, MiB, GiB and TiB that leaves a figure of at least 1."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B{per}" if unit == "B" else f"{value:.2f} {unit}{per}"
        value /= 1024
    return f"{value:.2f} TiB{per}"
