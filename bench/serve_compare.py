# SPDX-License-Identifier: Apache-2.0
"""What the runs of several servers say of each other: medians, spreads, ratios and verdicts.

The spread of a server is the range from the lowest to the highest of its runs. Of two servers, the second one is

    within spread   the two ranges have a value in common
    ahead           they have none, and its median is the better one
    behind          they have none, and its median is the worse one

so "at least equal within the spread" is: not behind. One run alone has no spread, and no verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from vt_sglang.chat.metrics import SERVING, Metric
from vt_sglang.chat.stats import Spread, spread

Verdict = Literal["within spread", "ahead", "behind"]


GIB = 2**-30

RUN_METRICS = SERVING
START_METRICS = (
    Metric("start_s", "server start, s", ",.1f"),
    Metric("idle_bytes", "memory before the load, GiB", ",.2f", scale=GIB),
    Metric("peak_bytes", "memory at the peak, GiB", ",.2f", scale=GIB),
    Metric("after_bytes", "memory after the load, GiB", ",.2f", scale=GIB),
    Metric("kv_idle_bytes", "of it for KV, before, GiB", ",.3f", scale=GIB),
    Metric("kv_after_bytes", "of it for KV, after, GiB", ",.3f", scale=GIB),
)
METRICS = {metric.key: metric for metric in (*RUN_METRICS, *START_METRICS)}


def verdict(reference: Spread, other: Spread, *, more_is_better: bool) -> Verdict | None:
    """What `other` is, beside `reference`; None if either has a single run."""
    if min(reference.runs, other.runs) < 2:
        return None
    if other.low <= reference.high and reference.low <= other.high:
        return "within spread"
    return "ahead" if (other.median > reference.median) is more_is_better else "behind"


def compare(metrics: Sequence[Metric], sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row a metric: the spread of each side, and the ratio and the verdict of every side but the first beside it.

    Args:
        sides: by name, what was measured, a mapping from the metrics' keys a run.
    """
    rows = []
    for metric in metrics:
        spreads = {name: spread([run.get(metric.key) for run in runs]) for name, runs in sides.items()}
        (_, reference), *others = spreads.items()
        rows.append(
            {
                "metric": metric.key,
                "sides": {name: it and asdict(it) for name, it in spreads.items()},
                "beside": {name: it and reference and _beside(metric, reference, it) for name, it in others},
            }
        )
    return rows


def _beside(metric: Metric, reference: Spread, other: Spread) -> dict[str, Any]:
    ratio = other.median / reference.median if reference.median else None
    return {"ratio": ratio, "verdict": verdict(reference, other, more_is_better=metric.more_is_better)}


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A header and lines of cells, of what `compare` returned."""
    names = list(rows[0]["sides"])
    header = ["", *names]
    for name in names[1:]:
        header += [f"{name} / {names[0]}", f"{name} is"]
    lines = []
    for row in rows:
        metric = METRICS[row["metric"]]
        cells = [metric.name, *(_spread_cell(metric, row["sides"][name]) for name in names)]
        for name in names[1:]:
            beside = row["beside"][name] or {"ratio": None, "verdict": None}
            cells += ["-" if beside["ratio"] is None else f"{beside['ratio']:.3f}", beside["verdict"] or "-"]
        lines.append(cells)
    return header, lines


def _spread_cell(metric: Metric, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    median, low, high = (format(found[key] * metric.scale, metric.form) for key in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} to {high})"


def goals(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool | None]:
    """By side but the first: whether it is at least equal in all that it must be; None if that cannot be told."""
    reached: dict[str, bool | None] = {}
    musts = [row["beside"] for row in rows if METRICS[row["metric"]].must]
    for name in musts[0]:
        verdicts = [beside[name] and beside[name]["verdict"] for beside in musts]
        reached[name] = False if "behind" in verdicts else None if None in verdicts else True
    return reached
