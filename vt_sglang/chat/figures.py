# SPDX-License-Identifier: Apache-2.0
"""What the repeats of several servers say of each other: for every figure, intervals, ratios and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vt_sglang.chat.metrics import CHAT, Metric
from vt_sglang.chat.stats import interval, ratio, spread, verdict

Runs = Mapping[int, Mapping[str, Any]]
"""One server's figures by repeat."""

METRICS = {metric.key: metric for metric in CHAT}


def figures(sides: Mapping[str, Runs], metrics: Sequence[Metric] = CHAT) -> list[dict[str, Any]]:
    """A row a metric that is known of any run.

    Returns:
        `metric`, `name`, `more_is_better`; `sides`: by name, `runs`, `median`, `low`, `high` (lowest and highest run),
        `mean`, `ci_low`, `ci_high`; `beside`: by the names of all but the first, `ratio` to the first, its `ci_low`
        and `ci_high`, and the `verdict`. What is not known is None.
    """
    rows = []
    reference, *others = sides
    for metric in metrics:
        values = {name: _known(metric, runs) for name, runs in sides.items()}
        if not any(values.values()):
            continue
        rows.append(
            {
                "metric": metric.key,
                "name": metric.name,
                "more_is_better": metric.more_is_better,
                "sides": {name: _side(known) for name, known in values.items()},
                "beside": {name: _beside(metric, values[reference], values[name]) for name in others},
            }
        )
    return rows


def _known(metric: Metric, runs: Runs) -> dict[int, float]:
    return {repeat: run[metric.key] for repeat, run in runs.items() if run.get(metric.key) is not None}


def _side(known: Mapping[int, float]) -> dict[str, Any] | None:
    values = list(known.values())
    found = spread(values)
    if found is None:
        return None
    mean = interval(values)
    return asdict(found) | {"mean": mean.mean, "ci_low": mean.low, "ci_high": mean.high}


def _beside(metric: Metric, reference: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    found = ratio([(reference[repeat], other[repeat]) for repeat in sorted(reference.keys() & other.keys())])
    return {
        "ratio": found and found.mean,
        "ci_low": found and found.low,
        "ci_high": found and found.high,
        "verdict": verdict(found, more_is_better=metric.more_is_better),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A header and lines of cells: of each side its median, then its mean and half of the mean's interval."""
    names = list(rows[0]["sides"])
    header = ["", *names]
    for name in names[1:]:
        header += [f"{name} / {names[0]}", f"{name} is"]
    lines = []
    for row in rows:
        metric = METRICS[row["metric"]]
        cells = [metric.name, *(_side_cell(metric, row["sides"][name]) for name in names)]
        for name in names[1:]:
            cells += [_ratio_cell(row["beside"][name]), row["beside"][name]["verdict"] or "-"]
        lines.append(cells)
    return header, lines


def _side_cell(metric: Metric, side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "-"
    median, mean = (format(side[key] * metric.scale, metric.form) for key in ("median", "mean"))
    if side["ci_low"] is None:
        return median
    return f"{median}; {mean} ± {format((side['mean'] - side['ci_low']) * metric.scale, metric.form)}"


def _ratio_cell(beside: Mapping[str, Any]) -> str:
    if beside["ratio"] is None:
        return "-"
    if beside["ci_low"] is None:
        return f"{beside['ratio']:.3f}"
    return f"{beside['ratio']:.3f} ({beside['ci_low']:.3f} to {beside['ci_high']:.3f})"
