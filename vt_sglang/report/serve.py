# SPDX-License-Identifier: Apache-2.0
"""Figures of bench/serve.py: servers beside each other in alternating runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import Look, looks
from vt_sglang.report.model import Axis, Cell, Column, Figure, Group, Groups, Table

GIB = 2.0**-30
SPREAD = "Medians of the runs; the strokes go from the lowest run to the highest."


@dataclass(frozen=True)
class Metric:
    """What is shown of one field."""

    key: str
    unit: str
    form: str
    scale: float = 1.0


@dataclass(frozen=True)
class _Line:
    """One category: the row of a comparison."""

    name: str
    row: Field
    metric: Metric


LATENCIES = {
    "ttft": ("TTFT", Metric("ttft_p50_ms", "ms", ",.1f"), Metric("ttft_p99_ms", "ms", ",.1f")),
    "itl": (
        "Inter-token latency",
        Metric("inter_token_p50_ms", "ms", ",.2f"),
        Metric("inter_token_p99_ms", "ms", ",.2f"),
    ),
}
MEMORY = {
    "before the load": "idle_bytes",
    "at the peak": "peak_bytes",
    "after the load": "after_bytes",
    "of it for KV, before": "kv_idle_bytes",
    "of it for KV, after": "kv_after_bytes",
}


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    rate = Metric("output_tokens_per_s", "tokens/s", ",.0f")
    yield from _figure(runs, "serve-throughput", "Output tokens/s (higher is better)", _loads(runs, [("", rate)]))
    for name, (title, middle, tail) in LATENCIES.items():
        lines = _loads(runs, [("p50", middle), ("p99", tail)])
        yield from _figure(runs, f"serve-{name}", f"{title}, ms (lower is better)", lines)
    hits = Metric("hit_rate", "%", ",.1f", 100.0)
    yield from _figure(
        runs,
        "serve-hit-rate",
        "Prefix hit rate, % of prompt tokens (higher is better)",
        _loads(runs, [("", hits)]),
        end=100.0,
    )
    yield from _figure(
        runs,
        "serve-memory",
        "Memory of each server, GiB (lower is better)",
        [_Line(f"{run}{name}", row, Metric(key, "GiB", ",.2f", GIB)) for run, name, row, key in _memory(runs)],
    )
    start = Metric("start_s", "s", ",.1f")
    lines = [
        _Line(f"{prefix}server start", row, start)
        for prefix, run in _prefixed(runs)
        for row in run.data["results"]["servers"].list()
        if row["metric"].text() == start.key
    ]
    yield from _figure(runs, "serve-start", "Server start, s (lower is better)", lines)


def _prefixed(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Each run with what its categories begin with, if there are several."""
    return [(f"{run.label}: " if len(runs) > 1 else "", run) for run in runs]


def _loads(runs: Sequence[Run], metrics: Sequence[tuple[str, Metric]]) -> list[_Line]:
    lines = []
    for prefix, run in _prefixed(runs):
        for load in run.data["results"]["loads"].list():
            rows = {row["metric"].text(): row for row in load["rows"].list()}
            for name, metric in metrics:
                if metric.key in rows:
                    category = ", ".join(it for it in (load["name"].text(), name) if it)
                    lines.append(_Line(f"{prefix}{category}", rows[metric.key], metric))
    return lines


def _memory(runs: Sequence[Run]) -> Iterator[tuple[str, str, Field, str]]:
    for prefix, run in _prefixed(runs):
        rows = {row["metric"].text(): row for row in run.data["results"]["servers"].list()}
        for name, key in MEMORY.items():
            if key in rows:
                yield prefix, name, rows[key], key


def _figure(
    runs: Sequence[Run], name: str, title: str, lines: Sequence[_Line], end: float | None = None
) -> Iterator[Figure]:
    """None if nothing is known. Groups are the sides, categories are the lines."""
    sides = list(dict.fromkeys(side for line in lines for side, _ in line.row["sides"].items()))
    if not sides:
        return
    metric = lines[0].metric
    of_names = looks(sides)
    groups = tuple(_group(side, of_names[side], lines) for side in sides)
    yield Figure(
        name=name,
        title=title,
        notes=(SPREAD,) if any(_several(line) for line in lines) else (),
        plot=Groups(tuple(line.name for line in lines), Axis(metric.unit, end=end), groups),
        table=_table(lines, sides),
        source=source(runs),
    )


def _several(line: _Line) -> bool:
    return any(spread["runs"].number() > 1 for _, spread in line.row["sides"].items())


def _group(side: str, look: Look, lines: Sequence[_Line]) -> Group:
    low, middle, high = (tuple(_scaled(line, side, key) for line in lines) for key in ("low", "median", "high"))
    several = any(_several(line) for line in lines)
    return Group(side, look, middle, low if several else None, high if several else None, lines[0].metric.form)


def _scaled(line: _Line, side: str, key: str) -> float | None:
    spread = line.row["sides"].get(side)
    return None if spread is None else spread[key].number() * line.metric.scale


def _table(lines: Sequence[_Line], sides: Sequence[str]) -> Table:
    """Medians and spreads by side; then, of every side but the first, its ratio to the first and the verdict."""
    unit, form = lines[0].metric.unit, lines[0].metric.form
    header = [Column("")]
    for side in sides:
        header += [Column(f"{side}, {unit}", form), Column("lowest", form), Column("highest", form)]
    for side in sides[1:]:
        header += [Column(f"{side} / {sides[0]}", ".3f"), Column(f"{side} is")]
    rows: list[tuple[Cell, ...]] = []
    for line in lines:
        row: list[Cell] = [line.name]
        for side in sides:
            row += [_scaled(line, side, key) for key in ("median", "low", "high")]
        for side in sides[1:]:
            beside = line.row["beside"].get(side)
            verdict = beside.get("verdict") if beside else None
            row += [beside.maybe("ratio") if beside else None, verdict.text() if verdict else None]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))
