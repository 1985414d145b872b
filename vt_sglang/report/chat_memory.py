# SPDX-License-Identifier: Apache-2.0
"""KV memory of the servers of `vt-sglang chat`: over time where it was sampled, else at the end."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.chat_values import by_name, servers, sides
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Cell, Figure, Group, Groups, Line, Lines, Table, columns, group_table

MIB = 2.0**-20


def memory(runs: Sequence[Run]) -> Iterator[Figure]:
    yield from _over_time(runs)
    yield from _at_the_end(runs)


def _over_time(runs: Sequence[Run]) -> Iterator[Figure]:
    sampled = [
        (name, samples.list()) for name, _, server in sides(runs) if (samples := server.get("memory")) and samples.value
    ]
    if not sampled:
        return
    of_names = looks([name for name, _ in sampled])
    lines = []
    rows: list[tuple[Cell, ...]] = []
    for name, points in sampled:
        x = tuple(it["time_s"].number() for it in points)
        y = tuple(it["kv_bytes"].number() * MIB for it in points)
        lines.append(Line(name, of_names[name], x, y))
        rows += [(name, *point) for point in zip(x, y, strict=True)]
    yield Figure(
        name="chat-memory-over-time",
        title="KV memory over time (lower is better)",
        notes=("What the KV cache has taken, from the start of the load.",),
        plot=Lines(Axis("time, s"), Axis("KV memory, MiB"), tuple(lines)),
        table=Table(columns("server", ("time, s", ",.1f"), ("KV memory, MiB", ",.1f")), tuple(rows)),
        source=source(runs),
    )


def _at_the_end(runs: Sequence[Run]) -> Iterator[Figure]:
    names = servers(runs)
    values = {name: tuple(_taken(run, name) for run in runs) for name in names}
    if not any(value is not None for listed in values.values() for value in listed):
        return
    of_names = looks(names)
    labels = tuple(run.label for run in runs)
    groups = tuple(Group(name, of_names[name], values[name], form=",.1f") for name in names)
    yield Figure(
        name="chat-kv-memory",
        title="KV memory after the run (lower is better)",
        notes=(
            "With virtual tensors, the pages created; without, the pool that SGLang takes at its start: its tokens, "
            "at the bytes a token of the server with virtual tensors.",
        ),
        plot=Groups(labels, Axis("MiB"), groups),
        table=group_table("", groups, labels, "MiB", ",.1f"),
        source=source(runs),
    )


def _taken(run: Run, name: str) -> float | None:
    """MiB; None if nothing tells."""
    found = by_name(run)
    server = found.get(name)
    if server is None:
        return None
    if state := server.get("vtensor"):
        taken = state.maybe("physical_bytes")
    else:
        tokens = server.maybe("total_tokens")
        of_token = next(
            (size for it in found.values() if (other := it.get("vtensor")) and (size := other.maybe("token_bytes"))),
            None,
        )
        taken = None if tokens is None or of_token is None else tokens * of_token
    return None if taken is None else taken * MIB
