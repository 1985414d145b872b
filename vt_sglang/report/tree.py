# SPDX-License-Identifier: Apache-2.0
"""Figures of bench/tree.py: the radix tree against SGLang's."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.load import Run
from vt_sglang.report.looks import REFERENCE, look, looks
from vt_sglang.report.model import Axis, Figure, Group, Groups, Table, columns


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    rows = {run.label: {row["operation"].text(): row for row in run.data["results"].list()} for run in runs}
    operations = tuple(dict.fromkeys(operation for found in rows.values() for operation in found))
    names = {label: "vtensor" if len(runs) == 1 else f"{label}: vtensor" for label in rows}
    of_names = looks(list(names.values()))
    groups = [
        Group(
            names[label],
            of_names[names[label]],
            tuple(found[it].maybe("ratio") if it in found else None for it in operations),
            form=",.0f",
        )
        for label, found in rows.items()
    ]
    targets = tuple(
        next((target for found in rows.values() if it in found and (target := found[it].maybe("target"))), None)
        for it in operations
    )
    if any(target is not None for target in targets):
        groups.append(Group("target", look(REFERENCE), targets, form=",.0f", mark="limit"))
    table = Table(
        columns(
            *(["run"] if len(runs) > 1 else []),
            "operation",
            ("SGLang, us", ",.1f"),
            ("vtensor, us", ",.1f"),
            ("times faster", ",.1f"),
            ("target", ",.0f"),
            ("floor, us", ",.1f"),
        ),
        tuple(
            (
                *([label] if len(runs) > 1 else []),
                operation,
                *(row.maybe(key) for key in ("sglang_us", "vtensor_us", "ratio", "target", "floor_us")),
            )
            for label, found in rows.items()
            for operation, row in found.items()
        ),
    )
    yield Figure(
        name="tree-times-faster",
        title="Radix tree: times faster than SGLang's RadixCache (higher is better)",
        notes=("The time of one call of SGLang's tree, divided by that of the same call of the core's tree.",),
        plot=Groups(operations, Axis("times faster", log=True), tuple(groups), equal=1.0),
        table=table,
        source=source(runs),
    )
