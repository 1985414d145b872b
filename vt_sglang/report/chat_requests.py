# SPDX-License-Identifier: Apache-2.0
"""Figures of the single requests of `vt-sglang chat`, where a file holds them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from vt_sglang.chat.measure import percentile
from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import Look, looks
from vt_sglang.report.model import Axis, Cell, Figure, Line, Lines, Table, columns

SHARES = 10
"""Ranges into which cached shares of prompts are sorted."""

Side = tuple[str, list[Field]]
"""A server, with its run where there are several, and its requests that did not fail."""


def request_figures(runs: Sequence[Run]) -> Iterator[Figure]:
    sides = list(_sides(runs))
    if not sides:
        return
    of_names = looks([name for name, _ in sides])
    yield _ttft(runs, sides, of_names)
    yield _hit_rate_by_turn(runs, sides, of_names)


def _sides(runs: Sequence[Run]) -> Iterator[Side]:
    for run in runs:
        for server in run.data["servers"].list():
            if requests := server.get("requests"):
                done = [it for it in requests.list() if it.get("error") is None and it["prompt_tokens"].number() > 0]
                if done:
                    name = server["name"].text()
                    yield (f"{run.label}: {name}" if len(runs) > 1 else name), done


def _sorted(requests: Sequence[Field], place: Callable[[Field], int]) -> dict[int, list[Field]]:
    found: dict[int, list[Field]] = defaultdict(list)
    for request in requests:
        found[place(request)].append(request)
    return dict(sorted(found.items()))


def _share(request: Field) -> float:
    return request["cached_tokens"].number() / request["prompt_tokens"].number()


def _ttft(runs: Sequence[Run], sides: Sequence[Side], of_names: dict[str, Look]) -> Figure:
    lines = []
    rows: list[tuple[Cell, ...]] = []
    for name, requests in sides:
        ranges = _sorted(requests, lambda it: min(SHARES - 1, int(_share(it) * SHARES)))
        middles = [100 * sum(map(_share, found)) / len(found) for found in ranges.values()]
        times = [[it["ttft_ms"].number() for it in found] for found in ranges.values()]
        quarters = [tuple(percentile(found, percent) for found in times) for percent in (25, 50, 75)]
        lines.append(
            Line(name, of_names[name], tuple(middles), quarters[1], "line and points", quarters[0], quarters[2])
        )
        for index, (place, found) in enumerate(ranges.items()):
            span = f"{100 * place // SHARES} to {100 * (place + 1) // SHARES} %"
            rows.append((name, span, len(found), middles[index], *(quarter[index] for quarter in quarters)))
    header = columns(
        "server",
        "cached share",
        ("requests", ",.0f"),
        ("mean share, %", ",.1f"),
        *((f"TTFT {name}, ms", ",.2f") for name in ("p25", "p50", "p75")),
    )
    return Figure(
        name="chat-ttft-by-cached-share",
        title="TTFT by the cached share of the prompt (lower is better)",
        notes=(
            "Medians of the requests in each tenth of the range, at their mean share; strokes hold the middle half.",
        ),
        plot=Lines(Axis("cached share of the prompt, %", end=100.0), Axis("TTFT, ms"), tuple(lines)),
        table=Table(header, tuple(rows)),
        source=source(runs),
    )


def _hit_rate_by_turn(runs: Sequence[Run], sides: Sequence[Side], of_names: dict[str, Look]) -> Figure:
    lines = []
    rows: list[tuple[Cell, ...]] = []
    for name, requests in sides:
        turns = _sorted(requests, lambda it: int(it["turn"].number()) + 1)
        rates = []
        for turn, found in turns.items():
            prompt, cached = (sum(it[key].number() for it in found) for key in ("prompt_tokens", "cached_tokens"))
            rates.append(100 * cached / prompt)
            rows.append((name, turn, len(found), prompt, cached, rates[-1]))
        lines.append(Line(name, of_names[name], tuple(turns), tuple(rates), "line and points"))
    header = columns(
        "server",
        ("turn", ".0f"),
        ("requests", ",.0f"),
        ("prompt tokens", ",.0f"),
        ("cached", ",.0f"),
        ("hit rate, %", ",.1f"),
    )
    return Figure(
        name="chat-hit-rate-by-turn",
        title="Prefix hit rate by turn of the dialogue (higher is better)",
        plot=Lines(Axis("turn", form="d"), Axis("cached, % of prompt tokens", end=100.0), tuple(lines)),
        table=Table(header, tuple(rows)),
        source=source(runs),
    )
