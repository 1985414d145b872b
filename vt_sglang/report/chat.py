# SPDX-License-Identifier: Apache-2.0
"""Figures of `vt-sglang chat`: servers that played the same dialogues."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.chat_memory import memory
from vt_sglang.report.chat_requests import request_figures
from vt_sglang.report.chat_search import search
from vt_sglang.report.chat_values import Metric, by_name, metric_figure, sides
from vt_sglang.report.load import Run
from vt_sglang.report.model import Cell, Figure, Table, columns

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
SUMMARY = (
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


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    def percentiles(field: str) -> list[Metric]:
        return [Metric(f"{field}_{name}_ms", name) for name in ("p50", "p90", "p99")]

    hits = [Metric("hit_rate", scale=100.0)]
    throughput, goodput = [Metric("output_tokens_per_s")], [Metric("goodput_per_s")]
    for figure in (
        metric_figure(runs, "chat-throughput", "Output tokens/s (higher is better)", throughput, "tokens/s", ",.1f"),
        metric_figure(
            runs, "chat-goodput", "Requests/s within the limits (higher is better)", goodput, "requests/s", ",.2f"
        ),
        metric_figure(runs, "chat-ttft", "TTFT, ms (lower is better)", percentiles("ttft"), "ms", ",.1f"),
        metric_figure(
            runs, "chat-itl", "Inter-token latency, ms (lower is better)", percentiles("inter_token"), "ms", ",.2f"
        ),
        metric_figure(
            runs, "chat-hit-rate", "Prefix hit rate, % of prompt tokens (higher is better)", hits, "%", ",.1f", 100.0
        ),
    ):
        if figure:
            yield figure
    yield from search(runs)
    yield from request_figures(runs)
    yield from memory(runs)
    yield _summary(runs)
    yield from _counters(runs)


def verdicts(run: Run) -> Iterator[str]:
    """What the run says of outputs, failures and leaks."""
    comparisons = run.data.get("comparisons")
    single = run.data.get("comparison")
    listed = list(comparisons.items()) if comparisons else [("", single)] if single else []
    for name, comparison in listed:
        requests, differing = comparison["requests"].number(), comparison["differing"].number()
        prefix = f"Outputs of {name}" if len(listed) > 1 else "Outputs"
        said = (
            f"differ in {differing:,} of {requests:,} requests"
            if differing
            else f"identical in all {requests:,} requests"
        )
        yield f"{prefix}: {said}"
    for name, server in by_name(run).items():
        if failed := server["summary"].maybe("failed"):
            yield f"{name}: {failed:,} requests failed"
        leaks = server.get("leaks")
        for leak in leaks.list() if leaks else []:
            yield f"{name}: {leak.text()}"


def _summary(runs: Sequence[Run]) -> Figure:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for name, server in by_name(run).items():
            values = ((server["summary"].maybe(key), scale) for _, _, key, scale in SUMMARY)
            shown = (None if value is None else value * scale for value, scale in values)
            rows.append((run.label, name, *shown, server.maybe("start_s")))
    header = columns("run", "server", *((name, form) for name, form, _, _ in SUMMARY), ("server start, s", ",.1f"))
    return Figure(
        "chat-summary",
        "Each server in numbers",
        Table(header, tuple(rows)),
        notes=("Of repeats, the first.",) if any(server.get("runs") for _, _, server in sides(runs)) else (),
        source=source(runs),
    )


def _counters(runs: Sequence[Run]) -> Iterator[Figure]:
    rows: list[tuple[Cell, ...]] = [
        (run.label, name, *(state["counters"].maybe(key) for key in COUNTERS))
        for run in runs
        for name, server in by_name(run).items()
        if (state := server.get("vtensor"))
    ]
    if rows:
        header = columns("run", "server", *((key.replace("_", " "), ",.0f") for key in COUNTERS))
        yield Figure("chat-counters", "What the cache did", Table(header, tuple(rows)), source=source(runs))
