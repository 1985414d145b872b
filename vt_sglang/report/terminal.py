# SPDX-License-Identifier: Apache-2.0
"""The report's tables in a terminal."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import rich.table
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement

from vt_sglang.report.model import Figure, Section, Table

ROWS = 24
"""Rows up to which a table is printed whole."""
WORDS = 16
"""Columns that words get before they are broken."""
THINNED = 12
"""Rows of a longer one."""
LEAST_OF_SERIES = 3
"""Of them, of every series that it has."""


def show(sections: Sequence[Section], console: Console) -> None:
    """Print where the runs come from and, of each figure, the numbers."""
    for section in sections:
        console.rule(f"[bold]{escape(section.title)}", align="left")
        for about in section.about:
            console.print(f"[bold]{escape(about.label)}")
            for name, value in about.facts:
                console.print(f"  {escape(name)}: {escape(value)}", highlight=False)
            for verdict in about.verdicts:
                console.print(f"  {escape(verdict)}", highlight=False)
        for figure in section.figures:
            console.print()
            _figure(figure, console)
        console.print()


def _figure(figure: Figure, console: Console) -> None:
    """Print a table under its title: lying on its side, if that takes fewer columns than the terminal lacks."""
    table = figure.table
    chosen = _chosen(table)
    console.print(f"[bold]{escape(figure.title)}", highlight=False)
    heads = [column.name for column in table.columns]
    rows = [[table.text(row, column) for column in range(len(heads))] for row in chosen]
    shown = _rich(heads, rows, [bool(column.form) for column in table.columns])
    if _least_width(shown, console) <= console.width:
        _share_out(shown, heads, rows, console.width)
        console.print(shown)
    else:
        for few in _chunks(heads, rows, console):
            console.print(_turned(heads, few))
    if len(chosen) < len(table.rows):
        console.print(f"{len(chosen)} of {len(table.rows)} rows; the page has all", style="dim", highlight=False)


def _rich(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> rich.table.Table:
    """Words may be broken between lines, numbers may not."""
    shown = rich.table.Table()
    for index, (head, number) in enumerate(zip(heads, numbers, strict=True)):
        cells = [row[index] for row in rows]
        least = max((len(it) if number else min(len(it), WORDS) for it in cells), default=0)
        shown.add_column(escape(head), justify="right" if number else "left", min_width=least, overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _share_out(shown: rich.table.Table, heads: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> None:
    """Fix the columns' widths where they have to be broken: left to itself, Rich can come out wider than the room."""
    most = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    spare = room - 3 * len(heads) - 1  # lines, and a space on either side of each cell
    if sum(most) <= spare:
        return
    widths = [
        max([column.min_width or 0, *map(len, head.split())]) for column, head in zip(shown.columns, heads, strict=True)
    ]
    while sum(widths) < spare:
        lacking = [whole - width for whole, width in zip(most, widths, strict=True)]
        widths[lacking.index(max(lacking))] += 1
    for column, width in zip(shown.columns, widths, strict=True):
        column.width = width


def _turned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> rich.table.Table:
    """A column a row."""
    first, *others = zip(heads, *rows, strict=True)
    return _rich(first, others, [False] + [True] * len(rows))


def _chunks(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> Iterator[Sequence[Sequence[str]]]:
    """The rows in groups as large as fit beside each other when turned, and of one row at least."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or _least_width(_turned(heads, rows[start : end + 1]), console) > console.width:
            yield rows[start:end]
            start = end


def _least_width(table: rich.table.Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).minimum


def _chosen(table: Table) -> list[int]:
    """All rows, or THINNED of them evenly. Where they are of several series, named in the first column, some of each,
    so that series of equal length are shown at the same places. First and last are always among them."""
    if len(table.rows) <= ROWS:
        return list(range(len(table.rows)))
    named = not table.columns[0].form
    series = [list(them) for _, them in groupby(range(len(table.rows)), lambda row: table.rows[row][0] if named else 0)]
    if len(series) > ROWS // LEAST_OF_SERIES:
        series = [list(range(len(table.rows)))]
    share = max(THINNED // len(series), LEAST_OF_SERIES)
    return [row for rows in series for row in _evenly(rows, share)]


def _evenly(rows: Sequence[int], count: int) -> Sequence[int]:
    if len(rows) <= count:
        return rows
    return [rows[round(index * (len(rows) - 1) / (count - 1))] for index in range(count)]
