# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from vt_sglang.report.model import About, Figure, Section, Table
from vt_sglang.report.plots import as_json, draw
from vt_sglang.report.themes import THEMES, template

# Nothing is fetched, whatever the page or Plotly might try.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

OPEN_ROWS = 16
"""Rows up to which a table below a plot is shown unfolded."""

TITLE = "vt-sglang report"


def page(sections: Sequence[Section]) -> str:
    """The whole page. Plots are drawn by the reader's browser; the tables are in the HTML itself."""
    plots = {
        figure.name: as_json(draw(figure.plot)) for section in sections for figure in section.figures if figure.plot
    }
    body = "".join(_lines(sections))
    return document(TITLE, body, {"figures": plots, "themes": themes()}, [file("page.js")], file("page.css"))


def document(title: str, body: str, data: dict[str, Any], scripts: Sequence[str], style: str, theme: str = "") -> str:
    """A page that holds Plotly, its data by element id, its style and, at its end, its scripts."""
    held = "".join(f'<script type="application/json" id="{name}">{_script(it)}</script>\n' for name, it in data.items())
    run = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"{f" data-theme={theme}" if theme else ""}>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n"
        f"<body>\n{body}{held}{run}</body>\n</html>\n"
    )


def themes() -> dict[str, Any]:
    return {name: {"template": template(theme), "colours": theme.colours} for name, theme in THEMES.items()}


def file(name: str) -> str:
    """A file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _script(value: Any) -> str:
    """JSON that does not end the element it stands in, whatever its texts are."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _lines(sections: Sequence[Section]) -> Iterator[str]:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    count = sum(len(section.about) for section in sections)
    yield f'<header>\n<h1>{TITLE}</h1>\n<p class="quiet">{count} run{"s" * (count != 1)}, made {made}</p>\n'
    yield "<noscript><p>Plots need JavaScript; the tables hold the same numbers.</p></noscript>\n<nav><ul>\n"
    for section in sections:
        figures = ", ".join(f'<a href="#{it.name}">{escape(_short(it.title))}</a>' for it in section.figures)
        yield f'<li><a href="#{section.kind}">{escape(section.title)}</a>: {figures}</li>\n'
    yield "</ul></nav>\n</header>\n<main>\n"
    for section in sections:
        yield f'<section id="{section.kind}">\n<h2>{escape(section.title)}</h2>\n<div class="runs">\n'
        for about in section.about:
            yield from _about(about)
        yield "</div>\n"
        for figure in section.figures:
            yield from _figure(figure)
        yield "</section>\n"
    yield "</main>\n"


def _about(about: About) -> Iterator[str]:
    yield f'<div class="run">\n<h3>{escape(about.label)}</h3>\n<dl>\n'
    for name, value in about.facts:
        shown = f"<code>{escape(value)}</code>" if name.startswith(("command", "launch")) else escape(value)
        yield f"<dt>{escape(name)}</dt><dd>{shown}</dd>\n"
    for verdict in about.verdicts:
        yield f"<dt>result</dt><dd><strong>{escape(verdict)}</strong></dd>\n"
    yield "</dl>\n</div>\n"


def _figure(figure: Figure) -> Iterator[str]:
    name = f'<code class="quiet">{figure.name}</code>'
    yield f'<figure id="{figure.name}">\n<figcaption>\n<h3>{escape(figure.title)} {name}</h3>\n'
    if figure.notes:
        yield f'<p class="note">{escape(" ".join(figure.notes))}</p>\n'
    yield "</figcaption>\n"
    if figure.plot:
        yield f'<div class="plot" id="plot-{figure.name}" role="img" aria-label="{escape(figure.title)}"></div>\n'
    rows = len(figure.table.rows)
    unfolded = " open" if rows <= OPEN_ROWS else ""
    yield f"<details{unfolded}><summary>Table, {rows} row{'s' * (rows != 1)}</summary>\n"
    yield from _table(figure.table)
    yield "</details>\n</figure>\n"


def _short(title: str) -> str:
    """A title without what it says of better and worse."""
    return title.partition(" (")[0]


def _table(table: Table) -> Iterator[str]:
    number = [' class="number"' if column.form else "" for column in table.columns]
    heads = "".join(f"<th{kind}>{escape(it.name)}</th>" for kind, it in zip(number, table.columns, strict=True))
    yield f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n'
    for row, cells in enumerate(table.rows):
        shown = "".join(
            f"<td{kind}{_exact(cell)}>{escape(table.text(row, column))}</td>"
            for column, (kind, cell) in enumerate(zip(number, cells, strict=True))
        )
        yield f"<tr>{shown}</tr>\n"
    yield "</tbody></table></div>\n"


def _exact(cell: str | float | None) -> str:
    """The number itself, for programs."""
    return "" if cell is None or isinstance(cell, str) else f' data-value="{cell!r}"'
