# SPDX-License-Identifier: Apache-2.0
"""One look at a server: the figures of `/metrics` and `/server_info`, under one set of names."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

SOURCES = ("adopted", "aliased", "copied")
STATES = ("pinned", "evictable", "free", "not_created", "withheld")

_KINDS = ("source", "state", "phase", "mode")
"""Labels that tell quantities apart. Over all others, such as the replica or whether answers stream, is summed."""

_VTENSOR = "sglang:vtensor_"


@dataclass
class Sample:
    """Cumulative figures, unless said otherwise. What the server does not tell is not in `figures`."""

    time_s: float
    """A monotonic clock's."""
    figures: dict[str, float]
    """running, queued, token_usage (now; requests and a share); prompt_tokens, cached_tokens, cached_SOURCE,
    output_tokens; requests_bound, driver_calls, driver_seconds, evicted_tokens, evicted_nodes, kv_read_bytes,
    kv_reused_bytes; pages_STATE, budget_pages, page_bytes, token_bytes, physical_bytes, tree_tokens (now); output_rate
    (tokens/s, as the server says)."""
    has_metrics: bool = False
    has_vtensor: bool = False
    busiest: list[dict[str, Any]] | None = None
    """Prefixes as /server_info tells of them; None if it does not."""
    model: str | None = None
    version: str | None = None
    notes: list[str] = field(default_factory=list)
    """What is missing, and how to get it."""


def table(text: str) -> dict[str, float]:
    """Sums of a /metrics text by name, and label where it tells quantities apart: `name` or `name{label=value}`.

    ValueError if the text is none of Prometheus'.
    """
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("tp_rank", "0") != "0" or labels.get("pp_rank", "0") != "0":
                continue  # other parts of the same model count the same requests
            if "tp_rank" in labels and labels.get("priority"):
                continue  # the scheduler gives the sum as well, with no priority
            kind = next((f"{{{kind}={labels[kind]}}}" for kind in _KINDS if kind in labels), "")
            sums[sample.name + kind] += sample.value
    return dict(sums)


def from_metrics(text: str) -> dict[str, float]:
    """The figures that /metrics has. ValueError if it is no text of Prometheus'."""
    sums = table(text)
    figures: dict[str, float] = {}

    def take(name: str, *terms: str) -> None:
        if name not in figures and all(term in sums for term in terms):
            figures[name] = sum(sums[term] for term in terms)

    take("running", "sglang:num_running_reqs")
    take("queued", "sglang:num_queue_reqs")
    take("token_usage", "sglang:token_usage")
    take("output_tokens", "sglang:realtime_tokens_total{mode=decode}")
    for name in ("budget_pages", "page_bytes", "token_bytes", "physical_bytes", "tree_tokens"):
        take(name, _VTENSOR + name)
    for name in (
        "prompt_tokens",
        "requests_bound",
        "driver_calls",
        "driver_seconds",
        "evicted_tokens",
        "evicted_nodes",
    ):
        take(name, f"{_VTENSOR}{name}_total")
    for source in SOURCES:
        take(f"cached_{source}", f"{_VTENSOR}cached_tokens_total{{source={source}}}")
    for state in STATES:
        take(f"pages_{state}", f"{_VTENSOR}pages{{state={state}}}")
    take("cached_tokens", *(f"{_VTENSOR}cached_tokens_total{{source={it}}}" for it in SOURCES))
    take("kv_reused_bytes", *(f"{_VTENSOR}kv_reused_bytes_total{{source={it}}}" for it in SOURCES))
    take("kv_read_bytes", *(f"{_VTENSOR}kv_read_bytes_total{{phase={it}}}" for it in ("prefill", "decode")))
    # A server without virtual tensors: SGLang's own, of every prefill when it is launched. Each mode has its row only
    # after it first occurred.
    modes = ("sglang:realtime_tokens_total{mode=prefill_cache}", "sglang:realtime_tokens_total{mode=prefill_compute}")
    if "prompt_tokens" not in figures and any(mode in sums for mode in modes):
        figures["cached_tokens"] = sums.get(modes[0], 0.0)
        figures["prompt_tokens"] = figures["cached_tokens"] + sums.get(modes[1], 0.0)
    take("evicted_tokens", "sglang:evicted_tokens_total")
    return figures


def from_info(info: Mapping[str, Any]) -> tuple[dict[str, float], list[dict[str, Any]] | None]:
    """The figures that /server_info has, summed over data-parallel replicas, and the busiest prefixes of all."""
    sums: dict[str, float] = defaultdict(float)
    busiest: list[dict[str, Any]] | None = None
    for state in _dicts(info.get("internal_states")):
        if isinstance(rate := state.get("last_gen_throughput"), int | float):
            sums["output_rate"] += rate
        vtensor = state.get("vtensor")
        if not isinstance(vtensor, dict):
            continue
        for name, value in _figures(vtensor).items():
            sums[name] += value
        for size in ("page_bytes", "token_bytes"):
            if isinstance(vtensor.get(size), int):
                sums[size] = vtensor[size]  # alike in all replicas
        if isinstance(vtensor.get("busiest"), list):
            busiest = (busiest or []) + _dicts(vtensor["busiest"])
    return dict(sums), busiest


def _figures(vtensor: Mapping[str, Any]) -> dict[str, float]:
    """What one replica counted."""
    counts: dict[str, Any] = {}
    for part in ("counters", "usage", "tally"):
        counts |= vtensor.get(part) or {}
    names = {
        "prompt_tokens": "prompt_tokens",
        "cached_tokens": "tokens_matched",
        "requests_bound": "binds",
        "driver_calls": "driver_calls",
        "evicted_tokens": "tokens_evicted",
        "evicted_nodes": "nodes_evicted",
        "budget_pages": "budget_pages",
        "tree_tokens": "tree_tokens",
        "running": "live_slots",
    } | {f"cached_{source}": f"tokens_{source}" for source in SOURCES}
    figures = {name: float(counts[key]) for name, key in names.items() if key in counts}
    figures |= {f"pages_{state}": float(pages) for state, pages in (vtensor.get("pages") or {}).items()}
    if "driver_ns" in counts:
        figures["driver_seconds"] = counts["driver_ns"] / 1e9
    if "physical_bytes" in vtensor:
        figures["physical_bytes"] = float(vtensor["physical_bytes"])
    token_bytes = vtensor.get("token_bytes", 0)
    if "tokens_matched" in counts:
        figures["kv_reused_bytes"] = float(counts["tokens_matched"] * token_bytes)
    if "decode_read_tokens" in counts:
        read = counts["prefill_read_tokens"] + counts["decode_read_tokens"]
        figures["kv_read_bytes"] = float(read * token_bytes)
    return figures


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [it for it in found if isinstance(it, dict)] if isinstance(found, list) else []
