# SPDX-License-Identifier: Apache-2.0
"""Figures of `vt-sglang replay`: what a trace shares, and what a cache of each size catches of it."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Cell, Column, Figure, Level, Line, Lines, Spot, Table, columns
from vt_sglang.report.replay_parts import distances, prefixes, speed
from vt_sglang.report.replay_stacks import stacks
from vt_sglang.report.replay_time import over_time

GIB = 2.0**-30


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    yield _over_capacity(runs)
    yield from _curve(runs)
    for run in runs:
        yield from over_time(run, alone=len(runs) == 1)
    yield from stacks(runs)
    yield from speed(runs)
    for run in runs:
        yield from distances(run, alone=len(runs) == 1)
        yield from prefixes(run, alone=len(runs) == 1)


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """What was replayed."""
    trace, model = run.data["trace"], run.data["model"]
    counts = ((trace.maybe(key), name) for key, name in (("requests", "requests"), ("skipped", "lines skipped")))
    tokens = ((trace.maybe(f"{key}_tokens"), f"{key} tokens") for key in ("prompt", "output"))
    shown = ", ".join(f"{value:,.0f} {name}" for value, name in (*counts, *tokens) if value is not None)
    duration = trace.maybe("duration_s")
    yield "trace", f"{trace['path'].text()}: {shown}" + (f", over {duration:,.0f} s" if duration else "")
    name = model.get("name")
    sizes = f"{model['token_bytes'].number():,.0f} bytes a token, pages of {model['page_bytes'].number():,.0f} bytes"
    yield "model", f"{name.text()}: {sizes}" if name else sizes
    if (grain := run.data.maybe("grain_tokens")) is not None:
        yield "grain", "token by token" if grain == 1 else f"blocks of {grain:,.0f} tokens"


def verdicts(run: Run) -> Iterator[str]:
    """What else the run says."""
    if reason := run.data.get("without_radix"):
        yield f"Without RadixCache: {reason.text()}"


def _over_capacity(runs: Sequence[Run]) -> Figure:
    names = [
        f"{prefix}{it}" for prefix, _ in _prefixed(runs) for it in ("vtensor", "RadixCache", "LRU, every capacity")
    ]
    of_names = looks(names)
    lines: list[Line] = []
    levels, spots = [], []
    rows: list[tuple[Cell, ...]] = []
    for prefix, run in _prefixed(runs):
        if curve := run.data.get("curve"):
            x, y = _points(curve.list())
            name = f"{prefix}LRU, every capacity"
            lines.append(Line(name, of_names[name], x, y))
        capacities = run.data["capacities"].list()
        for name, key in (("vtensor", "vtensor"), ("RadixCache", "radix")):
            found = [it for it in capacities if it.get(key)]
            if found:
                x = tuple(it["bytes"].number() * GIB for it in found)
                rates = tuple(100 * it[key]["hit_rate"].number() for it in found)
                lines.append(Line(f"{prefix}{name}", of_names[f"{prefix}{name}"], x, rates, "points"))
        infinite = run.data["infinite"]["hit_rate"].number() * 100
        levels.append(Level(f"{prefix}infinite cache: {infinite:.1f} %", infinite))
        knee = run.data.get("knee")
        if knee:
            place = knee["bytes"].number() * GIB, knee["hit_rate"].number() * 100
            spots.append(Spot(f"{prefix}knee: {place[0]:,.3g} GiB, {place[1]:.1f} %", *place))
        rows += [(run.label, *_capacity(it), infinite) for it in capacities]
        if knee:
            rows.append((f"{run.label}: knee", knee["tokens"].number(), place[0], place[1], None, None, None, infinite))
    header = columns(
        "run",
        ("tokens", ",.0f"),
        ("GiB", ",.2f"),
        ("vtensor, %", ",.2f"),
        ("of requests, %", ",.2f"),
        ("RadixCache, %", ",.2f"),
        ("of requests, % ", ",.2f"),
        ("infinite, %", ",.2f"),
    )
    return Figure(
        name="replay-hit-rate-over-capacity",
        title="Prefix hit rate over the cache's capacity (higher is better)",
        notes=("Hit rate: cached tokens, % of prompt tokens. At the knee, more memory begins to bring less.",),
        plot=Lines(
            Axis("capacity, GiB (logarithmic)", log=True),
            Axis("cached, % of prompt tokens"),
            tuple(lines),
            tuple(levels),
            tuple(spots),
        ),
        table=Table(header, tuple(rows)),
        source=source(runs),
    )


def _prefixed(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    return [(f"{run.label}: " if len(runs) > 1 else "", run) for run in runs]


def _capacity(it: Field) -> tuple[Cell, ...]:
    """Tokens, GiB, and the hit rates by tokens and by requests of both caches, %."""
    rates: list[Cell] = []
    for key in ("vtensor", "radix"):
        cache = it.get(key)
        for rate in ("hit_rate", "request_hit_rate"):
            value = cache.maybe(rate) if cache else None
            rates.append(None if value is None else 100 * value)
    return it["tokens"].number(), it["bytes"].number() * GIB, *rates


def _points(curve: Sequence[Field]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Capacities above 0, GiB, and hit rates there, %."""
    found = [(it["bytes"].number() * GIB, 100 * it["hit_rate"].number()) for it in curve if it["bytes"].number() > 0]
    return tuple(x for x, _ in found), tuple(y for _, y in found)


def _curve(runs: Sequence[Run]) -> Iterator[Figure]:
    rows: list[tuple[Cell, ...]] = [
        (run.label, it["tokens"].number(), it["bytes"].number() * GIB, 100 * it["hit_rate"].number())
        for run in runs
        if (curve := run.data.get("curve"))
        for it in curve.list()
    ]
    if rows:
        header = (Column("run"), Column("tokens", ",.0f"), Column("GiB", ",.3f"), Column("hit rate, %", ",.2f"))
        title = "Hit rate of an LRU cache at every capacity, from reuse distances"
        yield Figure("replay-curve", title, Table(header, tuple(rows)), source=source(runs))
