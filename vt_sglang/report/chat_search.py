# SPDX-License-Identifier: Apache-2.0
"""The highest load under which each server of `vt-sglang chat` kept its limits."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.chat_values import by_name, servers
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Cell, Figure, Group, Groups, Table, columns


def search(runs: Sequence[Run]) -> Iterator[Figure]:
    found = {
        (run.label, name): state
        for run in runs
        for name, server in by_name(run).items()
        if (state := server.get("saturation"))
    }
    if not found:
        return
    labels = tuple(dict.fromkeys(label for label, _ in found))
    names = [name for name in servers(runs) if any(name == it for _, it in found)]
    of_names = looks(names)
    groups = tuple(
        Group(
            name,
            of_names[name],
            tuple(found[label, name].maybe("highest") if (label, name) in found else None for label in labels),
            form=",.3g",
        )
        for name in names
    )
    rows: list[tuple[Cell, ...]] = []
    for (label, name), state in found.items():
        for probe in state["probes"].list():
            reasons = "; ".join(reason.text() for reason in probe["reasons"].list())
            rows.append((label, name, probe["load"].number(), "passed" if probe["passed"].value else "failed", reasons))
        rows.append((label, name, state.maybe("highest"), "highest", f"ended: {state['ended'].text()}"))
        rows.append((label, name, state.maybe("lowest_failed"), "lowest failed", ""))
    yield Figure(
        name="chat-highest-load",
        title="Highest load within the limits (higher is better)",
        notes=("Clients, or requests a second; the table has every load that was tried.",),
        plot=Groups(labels, Axis("load"), groups),
        table=Table(columns("run", "server", ("load", ",.4g"), "", "why"), tuple(rows)),
        source=source(runs),
    )
