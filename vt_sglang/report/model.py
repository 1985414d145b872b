# SPDX-License-Identifier: Apache-2.0
"""What a report shows, before it is drawn: plots and tables of plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vt_sglang.report.looks import Look

Cell = str | float | None
"""None: not known, or does not apply."""

NOTHING = "-"


@dataclass(frozen=True)
class Column:
    name: str
    """With its unit."""
    form: str = ""
    """How a number is written, a format specification; empty in a column of words."""


@dataclass(frozen=True)
class Table:
    """Each row has a cell a column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def text(self, row: int, column: int) -> str:
        """A cell as it is read."""
        cell = self.rows[row][column]
        if cell is None:
            return NOTHING
        return cell if isinstance(cell, str) else format(cell, self.columns[column].form or ",g")


@dataclass(frozen=True)
class Axis:
    title: str
    """With its unit."""
    form: str = ",.6~f"
    """How its numbers are written: a format of d3, as Plotly takes them; `d` for whole numbers from 1 on."""
    log: bool = False
    end: float | None = None
    """Where a linear axis ends, if not where its values do; it begins at 0."""


@dataclass(frozen=True)
class Line:
    """A curve, or points where `mark` is one of them. `x` and `y` are as long as each other."""

    name: str
    look: Look
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    mark: Literal["line", "line and points", "points"] = "line"
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    """From where to where each value is uncertain."""


@dataclass(frozen=True)
class Level:
    """A horizontal line across a plot."""

    name: str
    value: float


@dataclass(frozen=True)
class Spot:
    """A point with a name beside it."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Lines:
    """One number over another."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    spots: tuple[Spot, ...] = ()


@dataclass(frozen=True)
class Group:
    """One number a category."""

    name: str
    look: Look
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    form: str = ",.1f"
    """How a value is written beside its mark."""
    mark: Literal["value", "limit"] = "value"
    """limit: a stroke to which the values are to be compared, such as a floor or a target."""


@dataclass(frozen=True)
class Groups:
    """Numbers by category, side by side: bars from 0 on a linear axis, points on a logarithmic one."""

    categories: tuple[str, ...]
    value: Axis
    groups: tuple[Group, ...]
    stacked: bool = False
    equal: float | None = None
    """A value at which two sides are equal."""


@dataclass(frozen=True)
class Figure:
    name: str
    """Short, of small letters and hyphens; unique in a report."""
    title: str
    """Says what is better, higher or lower."""
    table: Table
    plot: Lines | Groups | None = None
    notes: tuple[str, ...] = ()
    """Sentences that stand below the title."""
    source: str = ""
    """Machine, versions and date of the runs shown; for a picture, which stands alone."""


@dataclass(frozen=True)
class About:
    """Where a run's figures come from: name and value, in the order in which they are read."""

    label: str
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[str, ...] = ()
    """What the run found, in a sentence each."""


@dataclass(frozen=True)
class Section:
    """All runs of one kind."""

    kind: str
    title: str
    about: tuple[About, ...]
    figures: tuple[Figure, ...] = field(default=())


def columns(*named: tuple[str, str] | str) -> tuple[Column, ...]:
    """Columns from names, or from names and formats."""
    return tuple(Column(it) if isinstance(it, str) else Column(*it) for it in named)


def group_table(first: str, groups: Sequence[Group], categories: Sequence[str], unit: str, form: str) -> Table:
    """The table of a plot by categories: a column a group, and its spread if it has one."""
    named: list[Column] = [Column(first)]
    for group in groups:
        named.append(Column(f"{group.name}, {unit}", form))
        if group.low is not None and group.high is not None:
            named += [Column(f"{group.name}, from", form), Column(f"{group.name}, to", form)]
    rows: list[tuple[Cell, ...]] = []
    for index, category in enumerate(categories):
        row: list[Cell] = [category]
        for group in groups:
            row.append(group.values[index])
            if group.low is not None and group.high is not None:
                row += [group.low[index], group.high[index]]
        rows.append(tuple(row))
    return Table(tuple(named), tuple(rows))
