# SPDX-License-Identifier: Apache-2.0
"""Figures of `vt-sglang chat`: servers that played the same dialogues."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.chat_requests import request_figures
from vt_sglang.report.fields import Field
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Cell, Figure, Group, Groups, Table, columns, group_table

Value = tuple[str, str, float]
"""Name of a category, field of a server's summary, and what to multiply it with."""

COUNTERS = (
    "pages_created",
    "pages_aliased",
    "pages_adopted",
    "pages_mapped",
    "pages_unmapped",
    "tails_extended",
    "tails_copied",
    "nodes_evicted",
    "tokens_evicted",
)


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    tokens = [("", "output_tokens_per_s", 1.0)]
    yield _figure(runs, "chat-throughput", "Output tokens/s (higher is better)", tokens, "tokens/s", ",.1f")
    for name, title, field in (("ttft", "TTFT", "ttft"), ("itl", "Inter-token latency", "inter_token")):
        values = [(percentile, f"{field}_{percentile}_ms", 1.0) for percentile in ("p50", "p99")]
        yield _figure(runs, f"chat-{name}", f"{title}, ms (lower is better)", values, "ms", ",.2f")
    hits = [("", "hit_rate", 100.0)]
    title = "Prefix hit rate, % of prompt tokens (higher is better)"
    yield _figure(runs, "chat-hit-rate", title, hits, "%", ",.1f", end=100.0)
    yield from request_figures(runs)
    yield from _memory(runs)
    yield _summary(runs)
    yield from _counters(runs)


def verdicts(run: Run) -> Iterator[str]:
    """What the run says of outputs, cached tokens and leaks."""
    comparison = run.data.get("comparison")
    if comparison is not None and comparison.has("differing"):
        requests, differing = comparison["requests"].number(), comparison["differing"].number()
        yield (
            f"Outputs: differ in {differing:,} of {requests:,} requests"
            if differing
            else (f"Outputs: identical in all {requests:,} requests")
        )
    for server in run.data["servers"].list():
        failed = server["summary"].maybe("failed") if server.has("summary") else None
        if failed:
            yield f"{server['name'].text()}: {failed:,} requests failed"
        for leak in server["leaks"].list() if server.has("leaks") else []:
            yield f"{server['name'].text()}: {leak.text()}"


def servers(runs: Sequence[Run]) -> list[str]:
    """The names of all servers, in the order in which they appear."""
    return list(dict.fromkeys(server["name"].text() for run in runs for server in run.data["servers"].list()))


def by_name(run: Run) -> dict[str, Field]:
    return {server["name"].text(): server for server in run.data["servers"].list()}


def _figure(
    runs: Sequence[Run],
    name: str,
    title: str,
    values: Sequence[Value],
    unit: str,
    form: str,
    end: float | None = None,
) -> Figure:
    """Groups are servers; categories are runs, and in each what `values` names."""
    names = servers(runs)
    of_names = looks(names)
    categories = tuple(
        ", ".join(it for it in (run.label if len(runs) > 1 or not value[0] else "", value[0]) if it)
        for run in runs
        for value in values
    )
    groups = tuple(
        Group(
            server,
            of_names[server],
            tuple(_value(by_name(run).get(server), key, scale) for run in runs for _, key, scale in values),
            form=form,
        )
        for server in names
    )
    return Figure(
        name=name,
        title=title,
        plot=Groups(categories, Axis(unit, end=end), groups),
        table=group_table("", groups, categories, unit, form),
        source=source(runs),
    )


def _value(server: Field | None, key: str, scale: float) -> float | None:
    value = None if server is None else server["summary"].maybe(key)
    return None if value is None else value * scale


def _memory(runs: Sequence[Run]) -> Iterator[Figure]:
    """KV memory: what stock SGLang takes at its start is what the same number of tokens takes as virtual tensors."""
    names = servers(runs)
    of_names = looks(names)
    values: dict[str, list[float | None]] = {name: [] for name in names}
    for run in runs:
        found = by_name(run)
        states = [state for it in found.values() if (state := it.get("vtensor"))]
        token_bytes = states[0].maybe("token_bytes") if states else None
        for name in names:
            server = found.get(name)
            state = server.get("vtensor") if server else None
            tokens = server.maybe("total_tokens") if server else None
            taken = state.maybe("physical_bytes") if state else None
            if server and state is None and tokens is not None and token_bytes is not None:
                taken = tokens * token_bytes
            values[name].append(None if taken is None else taken / 2**20)
    if not any(value is not None for listed in values.values() for value in listed):
        return
    labels = tuple(run.label for run in runs)
    groups = tuple(Group(name, of_names[name], tuple(values[name]), form=",.1f") for name in names)
    yield Figure(
        name="chat-kv-memory",
        title="KV memory after the run, MiB (lower is better)",
        notes=(
            "With virtual tensors, the pages created; without, the pool that SGLang takes at its start: "
            "its tokens, at the same bytes a token.",
        ),
        plot=Groups(labels, Axis("MiB"), groups),
        table=group_table("", groups, labels, "MiB", ",.1f"),
        source=source(runs),
    )


def _summary(runs: Sequence[Run]) -> Figure:
    named = (
        ("requests", ",.0f", "requests", 1.0),
        ("failed", ",.0f", "failed", 1.0),
        ("prompt tokens", ",.0f", "prompt_tokens", 1.0),
        ("cached tokens", ",.0f", "cached_tokens", 1.0),
        ("hit rate, %", ",.1f", "hit_rate", 100.0),
        ("output tokens", ",.0f", "output_tokens", 1.0),
        ("tokens/s", ",.1f", "output_tokens_per_s", 1.0),
        ("TTFT p50, ms", ",.1f", "ttft_p50_ms", 1.0),
        ("TTFT p99, ms", ",.1f", "ttft_p99_ms", 1.0),
        ("ITL p50, ms", ",.2f", "inter_token_p50_ms", 1.0),
        ("ITL p99, ms", ",.2f", "inter_token_p99_ms", 1.0),
    )
    rows: list[tuple[Cell, ...]] = [
        (run.label, name, *(_value(server, key, scale) for _, _, key, scale in named), server.maybe("start_s"))
        for run in runs
        for name, server in by_name(run).items()
    ]
    header = columns("run", "server", *((name, form) for name, form, _, _ in named), ("server start, s", ",.1f"))
    return Figure("chat-summary", "All figures of each server", Table(header, tuple(rows)), source=source(runs))


def _counters(runs: Sequence[Run]) -> Iterator[Figure]:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for name, server in by_name(run).items():
            if state := server.get("vtensor"):
                rows.append((run.label, name, *(state["counters"].maybe(key) for key in COUNTERS)))
    if rows:
        header = columns("run", "server", *((key.replace("_", " "), ",.0f") for key in COUNTERS))
        yield Figure("chat-counters", "What the cache did", Table(header, tuple(rows)), source=source(runs))
