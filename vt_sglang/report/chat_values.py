# SPDX-License-Identifier: Apache-2.0
"""What `vt-sglang chat` measured of each server: a single run's figures, or those of all repeats with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Cell, Column, Figure, Group, Groups, Table


@dataclass(frozen=True)
class Metric:
    """What is shown of one field of a summary."""

    key: str
    name: str = ""
    """Tells it from others in one plot."""
    scale: float = 1.0


@dataclass(frozen=True)
class _Value:
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    """To the first server, and whether that is better."""
    verdict: str | None = None


def servers(runs: Sequence[Run]) -> list[str]:
    """The names of all servers, in the order in which they appear."""
    return list(dict.fromkeys(server["name"].text() for run in runs for server in run.data["servers"].list()))


def by_name(run: Run) -> dict[str, Field]:
    return {server["name"].text(): server for server in run.data["servers"].list()}


def sides(runs: Sequence[Run]) -> list[tuple[str, Run, Field]]:
    """Every server of every run, named after its run too where there are several."""
    return [
        (f"{run.label}: {name}" if len(runs) > 1 else name, run, server)
        for run in runs
        for name, server in by_name(run).items()
    ]


def metric_figure(
    runs: Sequence[Run],
    name: str,
    title: str,
    metrics: Sequence[Metric],
    unit: str,
    form: str,
    end: float | None = None,
) -> Figure | None:
    """Groups are servers; categories are runs, and in each the metrics that any server has. None if there is none."""
    names = servers(runs)
    cells = {
        (run.label, metric): {server: _value(run, server, metric) for server in names}
        for run in runs
        for metric in metrics
    }
    cells = {place: row for place, row in cells.items() if any(it.value is not None for it in row.values())}
    if not cells:
        return None
    categories = tuple(
        ", ".join(it for it in (label if len(runs) > 1 or not metric.name else "", metric.name) if it)
        for label, metric in cells
    )
    spread = any(it.low is not None for row in cells.values() for it in row.values())
    of_names = looks(names)
    groups = tuple(
        Group(
            server,
            of_names[server],
            tuple(row[server].value for row in cells.values()),
            tuple(row[server].low for row in cells.values()) if spread else None,
            tuple(row[server].high for row in cells.values()) if spread else None,
            form,
        )
        for server in names
    )
    return Figure(
        name=name,
        title=title,
        notes=_notes(runs) if spread else (),
        plot=Groups(categories, Axis(unit, end=end), groups),
        table=_table(categories, list(cells.values()), names, unit, form, spread),
        source=source(runs),
    )


def _value(run: Run, server: str, metric: Metric) -> _Value:
    """The mean over the repeats with its interval; of a single run, what it measured."""
    for row in _rows(run):
        if row["metric"].text() != metric.key:
            continue
        side, beside = row["sides"].get(server), row["beside"].get(server)
        if side is None:
            continue
        ends = (side.maybe(end) for end in ("ci_low", "ci_high"))
        low, high = (None if end is None else end * metric.scale for end in ends)
        verdict = beside.get("verdict") if beside else None
        return _Value(
            side["mean"].number() * metric.scale,
            low,
            high,
            beside.maybe("ratio") if beside else None,
            verdict.text() if verdict else None,
        )
    found = by_name(run).get(server)
    value = found["summary"].maybe(metric.key) if found else None
    return _Value() if value is None else _Value(value * metric.scale)


def _rows(run: Run) -> list[Field]:
    figures = run.data.get("figures")
    return figures.list() if figures else []


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    repeats = {
        side["runs"].number() for run in runs for row in _rows(run) for _, side in row["sides"].items() if side["runs"]
    }
    shown = " or ".join(f"{it:.0f}" for it in sorted(repeats))
    confidences = [it.maybe("confidence") for run in runs if (it := run.data.get("statistics"))]
    percent = f"{100 * confidences[0]:.0f} % " if confidences and confidences[0] else ""
    return (f"Means of {shown} repeats; strokes are {percent}confidence intervals.",)


def _table(
    categories: Sequence[str],
    rows: Sequence[dict[str, _Value]],
    names: Sequence[str],
    unit: str,
    form: str,
    spread: bool,
) -> Table:
    """Values of all servers; with repeats also their intervals, and ratios to the first server."""
    header = [Column("")]
    for name in names:
        header.append(Column(f"{name}, {unit}", form))
        header += [Column("from", form), Column("to", form)] if spread else []
    if spread:
        for name in names[1:]:
            header += [Column(f"{name} / {names[0]}", ".3f"), Column(f"{name} is")]
    cells: list[tuple[Cell, ...]] = []
    for category, row in zip(categories, rows, strict=True):
        line: list[Cell] = [category]
        for name in names:
            line += [row[name].value, row[name].low, row[name].high] if spread else [row[name].value]
        if spread:
            for name in names[1:]:
                line += [row[name].ratio, row[name].verdict]
        cells.append(tuple(line))
    return Table(tuple(header), tuple(cells))
