# SPDX-License-Identifier: Apache-2.0
"""Plots of one number over another."""

import math
from typing import Any

import plotly.graph_objects as go

from vt_sglang.report.drawing import Drawing, axis, layout, plain, point
from vt_sglang.report.looks import DASHES, REFERENCE
from vt_sglang.report.model import Line, Lines

HEIGHT_PX = 400
MODES = {"line": "lines", "line and points": "lines+markers", "points": "markers"}
MANY = 4
"""Lines above which a legend takes a second row."""


def draw_lines(plot: Lines) -> Drawing:
    drawing = Drawing(go.Figure(), [], HEIGHT_PX + 22 * (len(plot.lines) // MANY))
    for line in plot.lines:
        drawing.figure.add_trace(_trace(plot, line))
        drawing.colours.append(line.look.colour)
    if plot.spots:
        drawing.figure.add_trace(
            go.Scatter(
                name="knee" if all("knee" in it.text for it in plot.spots) else "mark",
                x=[it.x for it in plot.spots],
                y=[it.y for it in plot.spots],
                customdata=[plain(it.text) for it in plot.spots],
                hovertemplate="%{customdata}<extra></extra>",
                mode="markers",
                marker={"symbol": "star", "size": 15},
            )
        )
        drawing.colours.append(REFERENCE)
    xs = [x for line in plot.lines for x in line.x] + [it.x for it in plot.spots]
    drawing.figure.update_layout(
        layout(legend=len(plot.lines) > 1),
        xaxis=axis(plot.x, xs, 0.02),
        yaxis=axis(plot.y, _ys(plot), 0.06),
        annotations=_annotations(plot),
    )
    for level in plot.levels:
        drawing.figure.add_hline(level.value, line={"width": 1.5, "dash": "dash"}, layer="below")
    return drawing


def _ys(plot: Lines) -> list[float]:
    found = [y for line in plot.lines for y in (*line.y, *(line.high or ())) if y is not None]
    return found + [it.value for it in plot.levels] + [it.y for it in plot.spots]


def _trace(plot: Lines, line: Line) -> go.Scatter:
    return go.Scatter(
        name=plain(line.name),
        x=list(line.x),
        y=list(line.y),
        mode=MODES[line.mark],
        line={"dash": DASHES[line.look.form], "width": 2},
        marker=point(line.look, 9),
        error_y=_uncertain(line),
        hovertemplate="%{fullData.name}<br>"
        f"{plain(plot.x.title)}: %{{x:,.4~f}}<br>{plain(plot.y.title)}: %{{y:,.2f}}<extra></extra>",
    )


def _uncertain(line: Line) -> dict[str, Any] | None:
    if line.low is None or line.high is None:
        return None
    spreads = list(zip(line.y, line.low, line.high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if y is None or high is None else high - y for y, _, high in spreads],
        "arrayminus": [None if y is None or low is None else y - low for y, low, _ in spreads],
        "thickness": 1.5,
        "width": 4,
    }


def _annotations(plot: Lines) -> list[dict[str, Any]]:
    """Names of levels at the left end of their lines, and of spots below them."""
    made: list[dict[str, Any]] = [
        {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 6,
            "y": math.log10(level.value) if plot.y.log else level.value,
            "yanchor": "top",
            "text": plain(level.name),
            "showarrow": False,
        }
        for level in plot.levels
    ]
    made += [
        {
            "x": math.log10(spot.x) if plot.x.log else spot.x,
            "y": spot.y,
            "text": plain(spot.text),
            "showarrow": True,
            "arrowhead": 0,
            "ax": 14,
            "ay": 40,
            "xanchor": "left",
        }
        for spot in plot.spots
    ]
    return made
