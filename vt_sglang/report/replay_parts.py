# SPDX-License-Identifier: Apache-2.0
"""Of a replay: the time it took, reuse distances, and the prefixes that earn most."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.load import Run
from vt_sglang.report.looks import VTENSOR, look
from vt_sglang.report.model import Axis, Cell, Figure, Group, Groups, Table, columns, group_table
from vt_sglang.report.replay_stacks import capacities

TOP_PREFIXES = 10
TEXT = 120
"""Characters of a prefix in the table, at most."""


def speed(runs: Sequence[Run]) -> Iterator[Figure]:
    """Time of the cache part, beside RadixCache's."""
    found = [
        (name, it, radix) for name, it in capacities(runs) if it.get("times_faster") and (radix := it.get("radix"))
    ]
    if not found:
        return
    categories = tuple(category for category, _, _ in found)
    group = Group("vtensor", look(VTENSOR), tuple(it["times_faster"].number() for _, it, _ in found), form=",.1f")
    rows: list[tuple[Cell, ...]] = [
        (category, it["vtensor"].maybe("seconds"), radix.maybe("seconds"), it["times_faster"].number())
        for category, it, radix in found
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
        text = it.get("text")
        rows.append((index + 1, start, end, requests, tokens * 1e-6, text.text()[:TEXT] if text else first))
        names.append(f"{index + 1}: tokens {start:,.0f} to {end:,.0f}")
        saved.append(tokens * 1e-6)
    group = Group("saved", look(VTENSOR), tuple(saved[:TOP_PREFIXES]), form=",.3g")
    header = columns(
        ("no.", ".0f"),
        ("from token", ",.0f"),
        ("to token", ",.0f"),
        ("requests", ",.0f"),
        ("saved, M tokens", ",.4f"),
        "begins with",
    )
    yield Figure(
        name="replay-prefixes" + ("" if alone else f"-{run.label}"),
        title="Prefixes that save most (longer bars save more)" + ("" if alone else f": {run.label}"),
        notes=("Saved: the tokens of the part, once for each request that found it cached.",),
        plot=Groups(tuple(names[:TOP_PREFIXES]), Axis("M tokens saved"), (group,)),
        table=Table(header, tuple(rows)),
        source=source([run]),
    )
