# SPDX-License-Identifier: Apache-2.0
"""Hit rates over the time of a trace."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import OTHERS, REFERENCE, STOCK, VTENSOR, Look, look
from vt_sglang.report.model import Axis, Cell, Column, Figure, Line, Lines, Table

SHOWN = 4
"""Capacities in the plot at most."""

COLOURS = (VTENSOR, STOCK, *OTHERS)
SOLID, DASHED = 0, 1
"""Forms of the lines of virtual tensors and of SGLang's tree."""

UNITS = (("h", 3600.0, 3 * 3600.0), ("min", 60.0, 3 * 60.0), ("s", 1.0, 0.0))
"""Name, seconds, and the duration from which it is taken."""


def over_time(run: Run, *, alone: bool) -> Iterator[Figure]:
    """Cumulative hit rates. Where the trace has no times, over its prompt tokens."""
    capacities = _chosen(run.data["capacities"].list())
    sides: list[tuple[str, Look, list[Field]]] = []
    if points := run.data["infinite"].get("over_time"):
        sides.append(("infinite", look(REFERENCE), points.list()))
    for colour, capacity in zip(COLOURS, capacities, strict=False):
        size = f"{capacity['bytes'].number() / 2**30:,.3g} GiB"
        for name, key, form in (("vtensor", "vtensor", SOLID), ("RadixCache", "radix", DASHED)):
            cache = capacity.get(key)
            listed = cache.get("over_time") if cache else None
            if listed:
                sides.append((f"{name}, {size}", Look(colour, form), listed.list()))
    times = [point.maybe("time_s") for _, _, side in sides for point in side]
    if not times:
        return
    known = [time for time in times if time is not None]
    timed = len(known) == len(times) and max(known) > min(known)
    unit, seconds = next((name, size) for name, size, least in UNITS if not timed or max(known) >= least)
    key, scale, axis = ("time_s", 1 / seconds, unit) if timed else ("prompt_tokens", 1e-6, "M prompt tokens")
    lines, rows = [], []
    for name, of_side, side in sides:
        shown = [point for point in side if point["prompt_tokens"].number() > 0]
        x = tuple(point[key].number() * scale for point in shown)
        y = tuple(100 * point["cached_tokens"].number() / point["prompt_tokens"].number() for point in shown)
        lines.append(Line(name, of_side, x, y))
        for point, place, rate in zip(shown, x, y, strict=True):
            row: tuple[Cell, ...] = name, place, point["prompt_tokens"].number(), point["cached_tokens"].number(), rate
            rows.append(row)
    header = (
        Column("cache"),
        Column(f"time, {axis}" if timed else axis, ",.2f"),
        Column("prompt tokens", ",.0f"),
        Column("cached tokens", ",.0f"),
        Column("hit rate, %", ",.2f"),
    )
    yield Figure(
        name="replay-hit-rate-over-time" + ("" if alone else f"-{run.label}"),
        title="Prefix hit rate over time (higher is better)" + ("" if alone else f": {run.label}"),
        notes=("Cumulative: cached tokens so far, % of prompt tokens so far.",),
        plot=Lines(
            Axis(f"time of the trace, {axis}" if timed else axis), Axis("cached, % of prompt tokens"), tuple(lines)
        ),
        table=Table(header, tuple(rows)),
        source=source([run]),
    )


def _chosen(capacities: Sequence[Field]) -> list[Field]:
    """All of them, or SHOWN of them evenly, with the first and the last."""
    if len(capacities) <= SHOWN:
        return list(capacities)
    return [capacities[round(index * (len(capacities) - 1) / (SHOWN - 1))] for index in range(SHOWN)]
