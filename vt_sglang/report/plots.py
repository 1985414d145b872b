# SPDX-License-Identifier: Apache-2.0
"""Plots as Plotly draws them, but for the colours, which differ between light and dark (themes.py)."""

import json
from typing import Any

from vt_sglang.report.drawing import Drawing
from vt_sglang.report.model import Groups, Lines
from vt_sglang.report.plot_groups import draw_groups
from vt_sglang.report.plot_lines import draw_lines


def draw(plot: Lines | Groups) -> Drawing:
    return draw_lines(plot) if isinstance(plot, Lines) else draw_groups(plot)


def as_json(drawing: Drawing) -> dict[str, Any]:
    """What page.js takes: Plotly's `data` and `layout`, `colours`, the index of each
    trace's, and `height` in pixels."""
    made = json.loads(drawing.figure.to_json())
    made["layout"].pop("template", None)
    return {"data": made["data"], "layout": made["layout"], "colours": drawing.colours, "height": drawing.height}
