# SPDX-License-Identifier: Apache-2.0
"""Of a replay: where prompts were found, pages, time taken, reuse distances and the prefixes that earn most."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import REFERENCE, VTENSOR, look
from vt_sglang.report.model import Axis, Cell, Figure, Group, Groups, Table, columns, group_table

GIB = 2.0**-30
TOP_PREFIXES = 10
FOUND = ("adopted", "aliased", "copied", "computed")
FOUND_NOTE = (
    "Adopted: in pages that the slot mapped already. Aliased: in pages mapped for the request. "
    "Copied: in a tail, less than a page. Computed: not cached."
)


def stacks(runs: Sequence[Run]) -> Iterator[Figure]:
    """What each capacity's prompts, bytes and pages are made of."""
    for name, title, key, unit, scale, form, note in (
        (
            "found",
            "Prompt tokens by where they were found (less computed is better)",
            "tokens",
            "M tokens",
            1e-6,
            ",.3f",
            FOUND_NOTE,
        ),
        ("bytes", "KV bytes that did not have to be computed, by how", "bytes", "GiB", GIB, ",.2f", ""),
        ("pages", "Pages at the end of the trace, by state", "pages", "pages", 1.0, ",.0f", ""),
    ):
        yield from _stack(runs, f"replay-{name}", title, key, unit, scale, form, (note,) if note else ())


def _stack(
    runs: Sequence[Run], name: str, title: str, key: str, unit: str, scale: float, form: str, notes: tuple[str, ...]
) -> Iterator[Figure]:
    categories, found = [], []
    for category, capacity in _capacities(runs):
        parts = capacity["vtensor"].get(key)
        if parts:
            categories.append(category)
            found.append({part.replace("_", " "): value.number() * scale for part, value in parts.items()})
    parts_named = sorted(
        {part for it in found for part in it}, key=lambda it: (FOUND.index(it) if it in FOUND else 9, it)
    )
    if not parts_named:
        return
    order = {part: look(REFERENCE if part == "computed" else index) for index, part in enumerate(parts_named)}
    groups = tuple(Group(part, order[part], tuple(it.get(part) for it in found), form=form) for part in parts_named)
    yield Figure(
        name=name,
        title=title,
        notes=notes,
        plot=Groups(tuple(categories), Axis(unit), groups, stacked=True),
        table=group_table("capacity", groups, categories, unit, form),
        source=source(runs),
    )


def _capacities(runs: Sequence[Run]) -> Iterator[tuple[str, Field]]:
    for run in runs:
        for capacity in run.data["capacities"].list():
            size = f"{capacity['bytes'].number() * GIB:,.3g} GiB"
            yield f"{run.label}: {size}" if len(runs) > 1 else size, capacity


def speed(runs: Sequence[Run]) -> Iterator[Figure]:
    """Time of the cache part, beside RadixCache's."""
    found = [(category, it) for category, it in _capacities(runs) if it.get("times_faster")]
    if not found:
        return
    categories = tuple(category for category, _ in found)
    group = Group("vtensor", look(VTENSOR), tuple(it["times_faster"].number() for _, it in found), form=",.1f")
    rows: list[tuple[Cell, ...]] = [
        (category, it["vtensor"].maybe("seconds"), it["radix"].maybe("seconds"), it["times_faster"].number())
        for category, it in found
    ]
    header = columns("capacity", ("vtensor, s", ",.3f"), ("RadixCache, s", ",.3f"), ("times faster", ",.1f"))
    yield Figure(
        name="replay-times-faster",
        title="Cache part of the replay: times faster than SGLang's RadixCache (higher is better)",
        plot=Groups(categories, Axis("times faster"), (group,), equal=1.0),
        table=Table(header, tuple(rows)),
        source=source(runs),
    )


def distances(run: Run, *, alone: bool) -> Iterator[Figure]:
    """How much other text came between two uses of the same."""
    listed = run.data.get("reuse_distance")
    if listed is None or not listed.list():
        return
    names, tokens = [], []
    for it in listed.list():
        bound = it.maybe("up_to_tokens")
        names.append("never before" if bound is None else f"up to {bound:,.0f}")
        tokens.append(it["tokens"].number() * 1e-6)
    groups = (Group("reused", look(VTENSOR), tuple(tokens), form=",.3g"),)
    yield Figure(
        name="replay-reuse-distance" + ("" if alone else f"-{run.label}"),
        title="Reuse distance: distinct tokens between two uses of the same tokens"
        + ("" if alone else f": {run.label}"),
        notes=("A cache of that many tokens catches all that stands at or above its line.",),
        plot=Groups(tuple(names), Axis("M tokens reused"), groups),
        table=group_table("distance, tokens", groups, names, "M tokens", ",.4f"),
        source=source([run]),
    )


def prefixes(run: Run, *, alone: bool) -> Iterator[Figure]:
    """The parts of prompts that saved most."""
    listed = run.data.get("prefixes")
    if listed is None or not listed.list():
        return
    rows: list[tuple[Cell, ...]] = []
    names, saved = [], []
    for index, it in enumerate(listed.list()):
        start, end, requests, tokens = (it[key].number() for key in ("start", "end", "requests", "saved_tokens"))
        first = " ".join(f"{token.number():.0f}" for token in it["first_ids"].list()[:8])
        rows.append((index + 1, start, end, requests, tokens * 1e-6, first))
        names.append(f"{index + 1}: tokens {start:,.0f} to {end:,.0f}")
        saved.append(tokens * 1e-6)
    group = Group("saved", look(VTENSOR), tuple(saved[:TOP_PREFIXES]), form=",.3g")
    header = columns(
        ("no.", ".0f"),
        ("from token", ",.0f"),
        ("to token", ",.0f"),
        ("requests", ",.0f"),
        ("saved, M tokens", ",.4f"),
        "first ids",
    )
    yield Figure(
        name="replay-prefixes" + ("" if alone else f"-{run.label}"),
        title="Prefixes that save most (longer bars save more)" + ("" if alone else f": {run.label}"),
        notes=("Saved: the tokens of the part, once for each request that found it cached.",),
        plot=Groups(tuple(names[:TOP_PREFIXES]), Axis("M tokens saved"), (group,)),
        table=Table(header, tuple(rows)),
        source=source([run]),
    )
