# SPDX-License-Identifier: Apache-2.0
"""Of a replay, by capacity: where prompts were found, what of it was saved how, and in which states pages are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import REFERENCE, look
from vt_sglang.report.model import Axis, Cell, Column, Figure, Group, Groups, Table

GIB = 2.0**-30


@dataclass(frozen=True)
class _Stack:
    key: str
    """Of an object in a capacity's figures: part by part, numbers."""
    title: str
    unit: str
    scale: float
    form: str
    parts: tuple[str, ...]
    """Those that add up to the whole, in the order in which they are drawn; others stand in the table alone."""
    rest: str = ""
    """The part that is no gain, drawn in grey."""
    notes: tuple[str, ...] = ()


STACKS = (
    _Stack(
        "tokens",
        "Prompt tokens by where they were found (less computed is better)",
        "M tokens",
        1e-6,
        ",.3f",
        ("adopted", "aliased", "copied", "computed"),
        "computed",
        (
            "Adopted: in pages that the slot mapped already. Aliased: in pages mapped for the request. "
            "Copied: in a tail, less than a page. Computed: not cached.",
        ),
    ),
    _Stack("bytes", "KV that was not computed again, by how", "GiB", GIB, ",.2f", ("adopted", "aliased", "copied")),
    _Stack(
        "pages",
        "Pages of the budget at the end of the trace, by state",
        "pages",
        1.0,
        ",.0f",
        ("held", "free", "not_created"),
        "not_created",
        ("Held: of recorded prefixes. Free: created, without content. Not created: memory never taken.",),
    ),
)


def stacks(runs: Sequence[Run]) -> Iterator[Figure]:
    for stack in STACKS:
        found = [(name, it["vtensor"]) for name, it in capacities(runs) if it["vtensor"].get(stack.key)]
        if found:
            yield _figure(stack, found, source(runs))


def capacities(runs: Sequence[Run]) -> Iterator[tuple[str, Field]]:
    """Each capacity of each run, and how it is called."""
    for run in runs:
        for capacity in run.data["capacities"].list():
            gib = capacity["bytes"].number() * GIB
            size = f"{gib:,.3g} GiB" if gib >= 1 else f"{gib * 1024:,.3g} MiB"
            yield f"{run.label}: {size}" if len(runs) > 1 else size, capacity


def _figure(stack: _Stack, found: Sequence[tuple[str, Field]], origin: str) -> Figure:
    all_parts = {part: None for _, it in found for part, _ in it[stack.key].items()}
    drawn = [part for part in stack.parts if part in all_parts]
    others = [part for part in all_parts if part not in drawn]

    def values(part: str) -> tuple[float | None, ...]:
        numbers = (it[stack.key].maybe(part) for _, it in found)
        return tuple(None if number is None else number * stack.scale for number in numbers)

    groups = tuple(
        Group(
            part.replace("_", " "),
            look(REFERENCE if part == stack.rest else index),
            values(part),
            form=stack.form,
        )
        for index, part in enumerate(drawn)
    )
    categories = tuple(name for name, _ in found)
    named = (*drawn, *others)
    header = [Column("capacity"), *(Column(f"{part.replace('_', ' ')}, {stack.unit}", stack.form) for part in named)]
    cells: list[tuple[float | None, ...]] = [values(part) for part in named]
    rows: list[tuple[Cell, ...]] = [(name, *(it[index] for it in cells)) for index, name in enumerate(categories)]
    if stack.key == "pages":
        header.append(Column("lost to rounding, GiB", ",.3f"))
        waste = [it.maybe("page_waste_bytes") for _, it in found]
        rows = [(*row, None if it is None else it * GIB) for row, it in zip(rows, waste, strict=True)]
    return Figure(
        name=f"replay-{'found' if stack.key == 'tokens' else stack.key}",
        title=stack.title,
        notes=stack.notes,
        plot=Groups(categories, Axis(stack.unit), groups, stacked=True),
        table=Table(tuple(header), tuple(rows)),
        source=origin,
    )
