# SPDX-License-Identifier: Apache-2.0
"""Plots by categories: one below the other, so that long names stand beside their bars on a narrow screen too."""

import math
import re
import textwrap
from typing import Any

import plotly.graph_objects as go

from vt_sglang.report.drawing import Drawing, axis, layout, plain, point
from vt_sglang.report.looks import PATTERNS
from vt_sglang.report.model import Group, Groups

ROW_PX, GAP_PX, FRAME_PX = 22, 16, 96
BAND = 0.84
"""Share of a category's height that is used."""
LABEL_COLUMNS = 22
ROOM = 0.2
"""Share of the axis for the numbers behind the longest bars."""


def draw_groups(plot: Groups) -> Drawing:
    shown = [group for group in plot.groups if group.mark == "value"]
    limits = [group for group in plot.groups if group.mark == "limit"]
    rows = 1 if plot.stacked else max(1, len(shown))
    row_px = max(ROW_PX * rows, 30 if any(len(_wrapped(it)) > LABEL_COLUMNS for it in plot.categories) else 0)
    height = FRAME_PX + len(plot.categories) * (row_px + GAP_PX)
    drawing = Drawing(go.Figure(), [], height)
    numbers: list[dict[str, Any]] = []
    for index, group in enumerate(shown):
        at = [
            place + (0.0 if plot.stacked else (index - (rows - 1) / 2) * BAND / rows)
            for place in range(len(plot.categories))
        ]
        drawing.figure.add_trace(_marks(plot, group, at, BAND / rows * 0.86))
        drawing.colours.append(group.look.colour)
        if not plot.stacked:
            numbers += _numbers(plot, group, at)
    for group in limits:
        drawing.figure.add_trace(_limit(plot, group, row_px + GAP_PX * 0.5))
        drawing.colours.append(group.look.colour)
    drawing.figure.update_layout(
        layout(legend=len(plot.groups) > 1),
        barmode="stack" if plot.stacked else "overlay",
        xaxis=axis(plot.value, _values(plot), 0.02 if plot.stacked else ROOM),
        yaxis={
            "tickvals": list(range(len(plot.categories))),
            "ticktext": [_wrapped(it) for it in plot.categories],
            "range": [len(plot.categories) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
            "ticks": "outside",
            "ticklen": 6,
            "tickwidth": 0,
            "automargin": True,
        },
        annotations=numbers,
        uniformtext={"minsize": 10, "mode": "hide"},
    )
    drawing.figure.update_xaxes(fixedrange=True)
    drawing.figure.update_yaxes(fixedrange=True)
    if plot.equal is not None:
        drawing.figure.add_vline(plot.equal, line={"width": 1.5, "dash": "dash"}, layer="above")
    return drawing


def _wrapped(name: str) -> str:
    """A name in lines, broken at its commas rather than within its parts."""
    lines: list[str] = []
    for part in re.split(r"(?<=,) ", name):
        if lines and len(lines[-1]) + 1 + len(part) <= LABEL_COLUMNS:
            lines[-1] += f" {part}"
        else:
            lines += textwrap.wrap(part, LABEL_COLUMNS)
    return "<br>".join(map(plain, lines)) or " "


def _values(plot: Groups) -> list[float]:
    """All that the axis has to hold."""
    if plot.stacked:
        return [sum(group.values[index] or 0.0 for group in plot.groups) for index in range(len(plot.categories))]
    found = [value for group in plot.groups for value in (*group.values, *(group.high or ())) if value is not None]
    return found if plot.equal is None else [*found, plot.equal]


def _marks(plot: Groups, group: Group, at: list[float], width: float) -> go.Bar | go.Scatter:
    names = [plain(it) for it in plot.categories]
    common = {
        "name": plain(group.name),
        "x": list(group.values),
        "y": at,
        "customdata": names,
        "hovertemplate": "%{customdata}<br>%{fullData.name}: %{x:"
        + _d3(group.form)
        + "} "
        + plain(plot.value.title)
        + "<extra></extra>",
        "error_x": _uncertain(group),
    }
    if plot.value.log:
        return go.Scatter(mode="markers", marker=point(group.look, 11), **common)
    text = [None if value is None else format(value, group.form) for value in group.values] if plot.stacked else None
    return go.Bar(
        orientation="h",
        width=width,
        text=text,
        textposition="inside" if text else "none",
        insidetextanchor="middle",
        textangle=0,
        marker={
            "pattern": {"shape": PATTERNS[group.look.form], "fillmode": "overlay", "solidity": 0.15, "size": 9},
            "line": {"width": 1},
        },
        **common,
    )


def _d3(form: str) -> str:
    """A Python format specification is one of d3 as well, as far as it is used here."""
    return form or ","


def _uncertain(group: Group) -> dict[str, Any] | None:
    if group.low is None or group.high is None:
        return None
    spreads = list(zip(group.values, group.low, group.high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if v is None or high is None else high - v for v, _, high in spreads],
        "arrayminus": [None if v is None or low is None else v - low for v, low, _ in spreads],
        "thickness": 1.5,
        "width": 4,
    }


def _limit(plot: Groups, group: Group, px: float) -> go.Scatter:
    return go.Scatter(
        name=plain(group.name),
        x=list(group.values),
        y=list(range(len(plot.categories))),
        customdata=[plain(it) for it in plot.categories],
        hovertemplate="%{customdata}<br>%{fullData.name}: %{x:" + _d3(group.form) + "}<extra></extra>",
        mode="markers",
        marker={"symbol": "line-ns-open", "size": px, "line": {"width": 3}},
    )


def _numbers(plot: Groups, group: Group, at: list[float]) -> list[dict[str, Any]]:
    """Each value beside its mark, behind what it is uncertain by."""
    made = []
    for index, (place, value) in enumerate(zip(at, group.values, strict=True)):
        if value is None or (plot.value.log and value <= 0):
            continue
        high = group.high[index] if group.high else None
        end = value if high is None else max(value, high)
        made.append(
            {
                "x": math.log10(end) if plot.value.log else end,
                "y": place,
                "text": format(value, group.form),
                "showarrow": False,
                "xanchor": "left",
                "xshift": 8 if plot.value.log else 4,
                "yanchor": "middle",
            }
        )
    return made
