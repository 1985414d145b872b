# SPDX-License-Identifier: Apache-2.0
"""What both kinds of plots are drawn with."""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from vt_sglang.report.looks import SYMBOLS, Look
from vt_sglang.report.model import Axis

NARROW_MARGIN = {"l": 8, "r": 12, "t": 8, "b": 8}
STEPS = (1.0, 2.0, 5.0)


@dataclass
class Drawing:
    """A plot of Plotly, and of each of its traces the colour (Look.colour)."""

    figure: go.Figure
    colours: list[int]
    height: int
    """Pixels."""


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it takes some HTML for markup."""
    return html.escape(text, quote=False)


def point(look: Look, size: int) -> dict[str, Any]:
    """A marker of so many pixels."""
    symbol = SYMBOLS[look.form]
    return {"symbol": symbol, "size": size, "line": {"width": 2 if symbol.endswith("-open") else 0}}


def layout(*, legend: bool) -> dict[str, Any]:
    """What all plots have in common."""
    return {
        "margin": NARROW_MARGIN,
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "hovermode": "closest",
        "dragmode": False,
    }


def axis(of: Axis, values: Iterable[float], room: float) -> dict[str, Any]:
    """An axis that holds all values, and for what stands behind the last one a share `room` of its length more."""
    found = list(values)
    made: dict[str, Any] = {"title": {"text": plain(of.title)}, "automargin": True}
    if of.log:
        known = [value for value in found if value > 0] or [1.0]
        low, high = math.log10(min(known)), math.log10(max(known))
        pad = max(0.08 * (high - low), 0.06)
        low, high = low - pad, high + pad
        high += room * (high - low)
        ticks = _log_ticks(10**low, 10**high)
        made |= {
            "type": "log",
            "range": [low, high],
            "tickvals": ticks,
            "ticktext": [f"{tick:,.10g}" for tick in ticks],
        }
    elif of.form == "d":
        low, high = min(found, default=1.0), max(found, default=1.0)
        step = max(1, math.ceil((high - low) / 12))
        made |= {"range": [low - 0.3, high + 0.3], "tick0": low, "dtick": step, "tickformat": "d"}
    else:
        end = max([*found, of.end or 0.0]) or 1.0
        made |= {"range": [0, end * (1 + room)], "tickformat": of.form, "rangemode": "tozero"}
    return made


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two: few powers of ten are helped out by their doubles and fives."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = STEPS if math.log10(high / low) < 2.5 else (1.0,)
    return [tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high]
