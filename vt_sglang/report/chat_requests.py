# SPDX-License-Identifier: Apache-2.0
"""Figures of parts of a run of `vt-sglang chat`: by cached share, by turn and over time. They are taken from the single
requests where a file holds them, else from the sums that it holds; of repeats, from the first."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np

from vt_sglang.report.about import source
from vt_sglang.report.chat_values import sides
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Cell, Column, Figure, Line, Lines, Table, columns

SHARES = 10
"""Ranges into which cached shares of prompts are sorted."""
POINTS = 200
"""Of a curve over time, at most."""

Point = tuple[Cell, ...]
Rows = dict[str, list[Point]]
"""By server."""

SHARE_HEADER = columns(
    "server",
    "cached share",
    ("requests", ",.0f"),
    ("mean share, %", ",.1f"),
    ("TTFT p50, ms", ",.2f"),
    ("p25", ",.2f"),
    ("p75", ",.2f"),
)
TURN_HEADER = columns(
    "server",
    ("turn", ".0f"),
    ("requests", ",.0f"),
    ("prompt tokens", ",.0f"),
    ("cached tokens", ",.0f"),
    ("hit rate, %", ",.1f"),
)
TIME_HEADER = columns(
    "server", ("time, s", ",.2f"), ("prompt tokens", ",.0f"), ("cached tokens", ",.0f"), ("hit rate, %", ",.1f")
)


def request_figures(runs: Sequence[Run]) -> Iterator[Figure]:
    shares, turns, times = (
        {name: found for name, _, server in sides(runs) if (found := rows(server))}
        for rows in (_by_share, _by_turn, _over_time)
    )
    if shares:
        yield Figure(
            name="chat-ttft-by-cached-share",
            title="TTFT by the cached share of the prompt (lower is better)",
            notes=("Medians of the requests in each range of shares; strokes hold the middle half.",),
            plot=Lines(
                Axis("cached share of the prompt, %", end=100.0),
                Axis("TTFT, ms"),
                _lines(shares, 2, 3, spread=(4, 5)),
            ),
            table=_table(SHARE_HEADER, shares),
            source=source(runs),
        )
    if turns:
        yield Figure(
            name="chat-hit-rate-by-turn",
            title="Prefix hit rate by turn of the dialogue (higher is better)",
            plot=Lines(Axis("turn", form="d"), Axis("cached, % of prompt tokens", end=100.0), _lines(turns, 0, 4)),
            table=_table(TURN_HEADER, turns),
            source=source(runs),
        )
    if times:
        yield Figure(
            name="chat-hit-rate-over-time",
            title="Prefix hit rate over time (higher is better)",
            notes=("Cumulative: cached tokens so far, % of prompt tokens so far, by when requests were sent.",),
            plot=Lines(
                Axis("time, s"), Axis("cached, % of prompt tokens", end=100.0), _lines(times, 0, 3, mark="line")
            ),
            table=_table(TIME_HEADER, times),
            source=source(runs),
        )


def _requests(server: Field) -> list[Field]:
    """Those that did not fail."""
    listed = server.get("requests")
    found = [it for it in listed.list() if it.get("error") is None] if listed else []
    return [it for it in found if it["prompt_tokens"].number() > 0]


def _by_share(server: Field) -> list[Point]:
    """Range, requests, mean share, median TTFT, and where its middle half begins and ends."""
    requests = _requests(server)
    rows: list[Point] = []
    if not requests and (parts := server.get("by_cached_share")):
        for part in parts.list():
            if (rate := part.maybe("hit_rate")) is not None:
                low, high = (100 * part[key].number() for key in ("from_share", "to_share"))
                count, middle = part["requests"].number(), part.maybe("ttft_p50_ms")
                rows.append((f"{low:.0f} to {high:.0f} %", count, 100 * rate, middle, None, None))
        return rows
    for place, found in _sorted(requests, lambda it: min(SHARES - 1, int(_share(it) * SHARES))).items():
        times = [it["ttft_ms"].number() for it in found]
        first, middle, third = (float(it) for it in np.percentile(times, (25, 50, 75)))
        span = f"{100 * place // SHARES} to {100 * (place + 1) // SHARES} %"
        rows.append((span, len(found), 100 * sum(map(_share, found)) / len(found), middle, first, third))
    return rows


def _by_turn(server: Field) -> list[Point]:
    """Turn from 1, requests, prompt tokens, cached tokens, hit rate."""
    rows: list[Point] = []
    if parts := server.get("by_turn"):
        for part in parts.list():
            counts = [part[key].number() for key in ("requests", "prompt_tokens", "cached_tokens")]
            if (rate := part.maybe("hit_rate")) is not None:
                rows.append((part["turn"].number() + 1, *counts, 100 * rate))
        return rows
    for turn, found in _sorted(_requests(server), lambda it: int(it["turn"].number())).items():
        prompt, cached = (sum(it[key].number() for it in found) for key in ("prompt_tokens", "cached_tokens"))
        rows.append((turn + 1, len(found), prompt, cached, 100 * cached / prompt))
    return rows


def _over_time(server: Field) -> list[Point]:
    """Time, and up to it prompt tokens, cached tokens and hit rate; nothing where times are not known."""
    requests = _requests(server)
    if not requests or not all(it.has("start_s") for it in requests):
        return []
    ordered = sorted(requests, key=lambda it: it["start_s"].number())
    prompts, cached = (
        list(accumulate(it[key].number() for it in ordered)) for key in ("prompt_tokens", "cached_tokens")
    )
    step = -(-len(ordered) // POINTS)
    shown = {*range(step - 1, len(ordered), step), len(ordered) - 1}
    return [
        (ordered[it]["start_s"].number(), prompts[it], cached[it], 100 * cached[it] / prompts[it])
        for it in sorted(shown)
    ]


def _share(request: Field) -> float:
    return request["cached_tokens"].number() / request["prompt_tokens"].number()


def _sorted(requests: Sequence[Field], place: Callable[[Field], int]) -> dict[int, list[Field]]:
    found: dict[int, list[Field]] = defaultdict(list)
    for request in requests:
        found[place(request)].append(request)
    return dict(sorted(found.items()))


def _lines(
    rows: Rows,
    x: int,
    y: int,
    *,
    spread: tuple[int, int] | None = None,
    mark: Literal["line", "line and points"] = "line and points",
) -> tuple[Line, ...]:
    """A line a server, from columns of its rows."""
    of_names = looks(list(rows))

    def column(points: Sequence[Point], index: int) -> tuple[float | None, ...]:
        return tuple(it if isinstance(it := point[index], int | float) else None for point in points)

    made = []
    for name, points in rows.items():
        places = tuple(it or 0.0 for it in column(points, x))
        low, high = (column(points, it) for it in spread) if spread else (None, None)
        made.append(Line(name, of_names[name], places, column(points, y), mark, low, high))
    return tuple(made)


def _table(header: tuple[Column, ...], rows: Rows) -> Table:
    return Table(header, tuple((name, *point) for name, points in rows.items() for point in points))
