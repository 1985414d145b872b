# SPDX-License-Identifier: Apache-2.0
"""What is shown: figures of now and of the last interval, from the samples taken."""

from dataclasses import dataclass, field
from typing import Any

from vt_sglang.watch.sample import SOURCES, STATES, Sample


def increase(before: float, after: float) -> float:
    """What a counter gained; one that fell began anew from 0, as a server does that was started again."""
    return after - before if after >= before else after


@dataclass
class View:
    """Requests, tokens, pages and bytes; rates a second; shares between 0 and 1. None: not known."""

    running: float | None = None
    queued: float | None = None
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    """Cached ones included."""
    hit_rate_now: float | None = None
    """Cached of prompt tokens in the last interval; None if there were no prompts."""
    hit_rate: float | None = None
    """The same since the server started."""
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    cached_by_source: dict[str, float] | None = None
    token_usage: float | None = None
    """Share of the KV cache in use by requests, as SGLang reckons."""
    pages: dict[str, float] | None = None
    budget_bytes: float | None = None
    page_bytes: float | None = None
    physical_bytes: float | None = None
    tree_tokens: float | None = None
    driver_calls: float | None = None
    driver_calls_per_s: float | None = None
    driver_seconds: float | None = None
    driver_share: float | None = None
    """Of the last interval's time."""
    evicted_tokens: float | None = None
    evicted_tokens_per_s: float | None = None
    kv_read_bytes_per_s: float | None = None
    kv_reused_bytes: float | None = None
    kv_reused_bytes_per_s: float | None = None
    busiest: list[dict[str, Any]] | None = None
    """Each with namespace, start, end, hits, saved_tokens and first_ids, most saved first."""
    notes: list[str] = field(default_factory=list)


def view(now: Sample, before: Sample | None = None) -> View:
    """Two samples in a row; with one alone, nothing is known of the interval."""
    figures = now.figures
    seconds = now.time_s - before.time_s if before is not None else 0.0

    def gained(name: str) -> float | None:
        if before is None or seconds <= 0 or name not in figures or name not in before.figures:
            return None
        return increase(before.figures[name], figures[name])

    def rate(name: str) -> float | None:
        gain = gained(name)
        return None if gain is None else gain / seconds

    output = rate("output_tokens") if now.has_metrics else figures.get("output_rate")
    pages = {state: figures[f"pages_{state}"] for state in STATES if f"pages_{state}" in figures}
    budget, page_bytes = figures.get("budget_pages"), figures.get("page_bytes")
    sources = {source: figures[f"cached_{source}"] for source in SOURCES if f"cached_{source}" in figures}
    return View(
        running=figures.get("running"),
        queued=figures.get("queued"),
        requests_per_s=rate("requests_bound"),
        output_tokens_per_s=output,
        prompt_tokens_per_s=rate("prompt_tokens"),
        hit_rate_now=_share(gained("cached_tokens"), gained("prompt_tokens")),
        hit_rate=_share(figures.get("cached_tokens"), figures.get("prompt_tokens")),
        prompt_tokens=figures.get("prompt_tokens"),
        cached_tokens=figures.get("cached_tokens"),
        cached_by_source=sources or None,
        token_usage=figures.get("token_usage"),
        pages=pages or None,
        budget_bytes=None if budget is None or page_bytes is None else budget * page_bytes,
        page_bytes=page_bytes,
        physical_bytes=figures.get("physical_bytes"),
        tree_tokens=figures.get("tree_tokens"),
        driver_calls=figures.get("driver_calls"),
        driver_calls_per_s=rate("driver_calls"),
        driver_seconds=figures.get("driver_seconds"),
        driver_share=rate("driver_seconds"),
        evicted_tokens=figures.get("evicted_tokens"),
        evicted_tokens_per_s=rate("evicted_tokens"),
        kv_read_bytes_per_s=rate("kv_read_bytes"),
        kv_reused_bytes=figures.get("kv_reused_bytes"),
        kv_reused_bytes_per_s=rate("kv_reused_bytes"),
        busiest=None if now.busiest is None else _saved(now.busiest),
        notes=list(now.notes),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _saved(busiest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    prefixes = [it | {"saved_tokens": it["hits"] * (it["end"] - it["start"])} for it in busiest]
    return sorted(prefixes, key=lambda it: it["saved_tokens"], reverse=True)
