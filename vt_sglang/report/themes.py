# SPDX-License-Identifier: Apache-2.0
"""Colours of plots on light and on dark ground.

The hues are those of Okabe and Ito's palette for all kinds of colour vision (Color Universal Design, 2008), made darker
or lighter so that each has a contrast of at least 3:1 to the ground, as WCAG 2.1 asks of graphics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    ground: str
    text: str
    faint: str
    """Of gridlines."""
    quiet: str
    """Of axis titles and lines to compare with."""
    colours: tuple[str, ...]
    """By Look.colour."""


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        ground="#ffffff",
        text="#1b1f24",
        faint="#e3e6ea",
        quiet="#57606a",
        colours=("#0072b2", "#d55e00", "#008a65", "#aa3377", "#8a6d00", "#5b4fc4", "#6a6f75"),
    ),
    "dark": Theme(
        ground="#14181d",
        text="#e6eaef",
        faint="#2b323a",
        quiet="#a3adb8",
        colours=("#56b4e9", "#f0902f", "#2cc99b", "#e48fbf", "#e6d94a", "#a79bf5", "#a8adb3"),
    ),
}


def template(theme: Theme) -> dict[str, Any]:
    """A template of Plotly, without the colours of traces, which each plot brings in its own order."""
    axis = {
        "gridcolor": theme.faint,
        "linecolor": theme.quiet,
        "tickcolor": theme.quiet,
        "zerolinecolor": theme.quiet,
        "title": {"font": {"color": theme.quiet, "size": 13}},
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 13, "color": theme.text},
            "paper_bgcolor": theme.ground,
            "plot_bgcolor": theme.ground,
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"font": {"color": theme.text}},
            "hoverlabel": {"bgcolor": theme.ground, "bordercolor": theme.quiet, "font": {"color": theme.text}},
            "annotationdefaults": {
                "font": {"color": theme.text, "size": 12},
                "bgcolor": theme.ground,
                "arrowcolor": theme.quiet,
            },
            "shapedefaults": {"line": {"color": theme.quiet}},
        },
        "data": {
            "bar": [{"type": "bar", "error_x": {"color": theme.text}, "marker": {"line": {"color": theme.ground}}}]
        },
    }


def coloured(theme: Theme, colours: Sequence[int]) -> dict[str, Any]:
    """The template of a plot whose traces have these colours (Look.colour)."""
    made = template(theme)
    made["layout"]["colorway"] = [theme.colours[colour] for colour in colours] or list(theme.colours)
    return made
