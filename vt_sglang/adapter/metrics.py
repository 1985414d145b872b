# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of a server, beside SGLang's own and with the same labels. docs/metrics.md says what each means.

SGLang serves /metrics from its HTTP process and gathers, through prometheus_client's files in
PROMETHEUS_MULTIPROC_DIR, what its other processes count. So the scheduler's process only has to count.

The core and the tally hold the truth; counters here follow by differences, at most once a second, and at once when the
scheduler falls idle. A step in between costs one look at the clock.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from vt_sglang.adapter.pages import pages_by_state
from vt_sglang.adapter.tree_cache import VTensorCache

INTERVAL_S = 1.0
"""Seconds between two updates while the scheduler is busy."""

PREFIX = "sglang:vtensor_"

SOURCES = ("adopted", "aliased", "copied")

_Counts = Mapping[str, float]
_COUNTERS: dict[str, tuple[str, Callable[[_Counts], float]]] = {
    "prompt_tokens": ("Prompt tokens of the requests bound to virtual tensors.", lambda it: it["prompt_tokens"]),
    "requests_bound": ("Requests bound to virtual tensors.", lambda it: it["binds"]),
    "rebound_requests": (
        "Those of the requests bound that came back after a retraction.",
        lambda it: it["rebound_requests"],
    ),
    "rebound_prompt_tokens": ("Prompt tokens of the requests bound again.", lambda it: it["rebound_prompt_tokens"]),
    "rebound_cached_tokens": ("Cached tokens of the requests bound again.", lambda it: it["rebound_cached_tokens"]),
    "evicted_nodes": ("Nodes of the radix tree evicted.", lambda it: it["nodes_evicted"]),
    "evicted_tokens": ("Tokens of the radix tree evicted.", lambda it: it["tokens_evicted"]),
    "driver_calls": ("Calls of the memory driver.", lambda it: it["driver_calls"]),
    "driver_seconds": ("Seconds spent in calls of the memory driver.", lambda it: it["driver_ns"] / 1e9),
    "driver_wait_seconds": (
        "Seconds that the scheduler spent in calls of the memory driver, or waiting for those of its thread.",
        lambda it: it["driver_wait_ns"] / 1e9,
    ),
    "forward_waits": ("Times that memory could be had only when forwards had ended.", lambda it: it["forward_waits"]),
    "forward_wait_seconds": ("Seconds that the scheduler waited for that.", lambda it: it["forward_wait_s"]),
    "pages_created": ("Physical pages created.", lambda it: it["pages_created"]),
    "pages_released": ("Physical pages given back to the driver.", lambda it: it["pages_released"]),
    "page_creations_failed": ("Pages not created for lack of memory.", lambda it: it["creations_failed"]),
    "pages_aliased": ("Pages shared with a prefix by a bind.", lambda it: it["pages_aliased"]),
    "pages_adopted": ("Those of the pages aliased that the slot mapped already.", lambda it: it["pages_adopted"]),
    "pages_reused": ("Free pages taken where the slot mapped them already.", lambda it: it["pages_reused"]),
    "pages_mapped": ("Pages mapped.", lambda it: it["pages_mapped"]),
    "pages_unmapped": ("Pages unmapped or replaced in a mapping.", lambda it: it["pages_unmapped"]),
    "pages_mapped_ahead": (
        "Those of the pages mapped that were so before they were needed.",
        lambda it: it["pages_mapped_ahead"],
    ),
    "pages_moved": ("Contents moved to another page, so that a mapping could stay.", lambda it: it["pages_moved"]),
    "pages_copied": (
        "Pages of prefixes copied to a request's own, which its slot mapped already.",
        lambda it: it["pages_copied"],
    ),
    "guards_mapped": ("Those of the pages mapped that only make memory readable.", lambda it: it["guards_mapped"]),
    "slots_shed": ("Idle slots unmapped to stay under the system's limit of mappings.", lambda it: it["slots_shed"]),
    "tails_extended": ("Partly filled pages that a bind went on filling in place.", lambda it: it["tails_extended"]),
    "tails_copied": ("Partly filled pages that a bind copied.", lambda it: it["tails_copied"]),
}
"""By name, less the prefix and `_total`: description, and value of the core's counters and the tally together."""

_GAUGES: dict[str, tuple[str, Callable[[Any, _Counts], float]]] = {
    "budget_pages": ("Pages that may exist at one time.", lambda _, it: it["budget_pages"]),
    "limit_pages": ("Pages that may exist for now, by the limit that was set.", lambda _, it: it["limit_pages"]),
    "page_bytes": ("Size of a physical page.", lambda core, _: core.page_bytes),
    "token_bytes": ("KV bytes of one token, all layers.", lambda core, _: core.token_bytes),
    "physical_bytes": ("Memory that the created pages occupy.", lambda core, _: core.physical_bytes()),
    "live_slots": ("Virtual tensors with a request.", lambda _, it: it["live_slots"]),
    "tree_nodes": ("Nodes of the radix tree.", lambda _, it: it["nodes"]),
    "tree_tokens": ("Tokens recorded in the radix tree.", lambda _, it: it["tree_tokens"]),
    "mapping_runs": ("Runs of pages mapped, as the system counts mappings.", lambda _, it: it["mapping_runs"]),
}
"""By name, less the prefix: description, and value of the core and its usage."""


class Following:
    """A counter of Prometheus that is brought up to where a count stands."""

    def __init__(self, increment: Callable[[float], None]) -> None:
        self._increment = increment
        self._last = 0.0

    def to(self, count: float) -> float:
        """Add what came since the last call, and return it. A count that fell began anew from 0."""
        came = count - self._last if count >= self._last else count
        self._last = count
        if came > 0:
            self._increment(came)
        return came


class Metrics:
    """The metrics of one scheduler."""

    def __init__(self, cache: VTensorCache, labels: Mapping[str, Any], collector: Any = None) -> None:
        """labels: of every metric, SGLang's own. collector: SGLang's, whose classes of metrics are used if it has any
        of its own."""
        # prometheus_client looks for PROMETHEUS_MULTIPROC_DIR when it is imported, and SGLang sets that first.
        import prometheus_client

        self._cache, self._collector = cache, collector
        self._due = 0.0
        self._dirty = True
        counter = getattr(collector, "_counter_cls", None) or prometheus_client.Counter
        gauge = getattr(collector, "_gauge_cls", None) or prometheus_client.Gauge
        names = list(labels)

        def one_counter(name: str, text: str, **more: str) -> Following:
            child = _family(counters, counter, f"{PREFIX}{name}_total", text, [*names, *more])
            return Following(child.labels(**labels, **more).inc)

        def one_gauge(name: str, text: str, **more: str) -> Any:
            child = _family(gauges, gauge, f"{PREFIX}{name}", text, [*names, *more], multiprocess_mode="mostrecent")
            return child.labels(**labels, **more)

        counters: dict[str, Any] = {}
        gauges: dict[str, Any] = {}
        self._counters = [(one_counter(name, text), value) for name, (text, value) in _COUNTERS.items()]
        cached, reused = "Prompt tokens found in the cache.", "KV bytes of prompt tokens found in the cache."
        self._cached = {source: one_counter("cached_tokens", cached, source=source) for source in SOURCES}
        self._reused = {source: one_counter("kv_reused_bytes", reused, source=source) for source in SOURCES}
        read = "KV bytes that attention read."
        self._read = {phase: one_counter("kv_read_bytes", read, phase=phase) for phase in ("prefill", "decode")}
        self._saved = one_counter("kv_saved_bytes", "KV bytes that decode did not read, as requests shared them.")
        self._gauges = [(one_gauge(name, text), value) for name, (text, value) in _GAUGES.items()]
        pages = "Pages of the budget by state."
        usage = cache.core.usage()
        self._pages = {state: one_gauge("pages", pages, state=state) for state in pages_by_state(usage)}
        self._evicted = Following(self._tell_evicted)
        self.update()

    def stepped(self) -> None:
        """A forward was launched: update if that is due. What it leads to is still to come."""
        if time.monotonic() >= self._due:
            self.update()
        self._dirty = True

    def changed(self) -> None:
        """Something changed without a forward; the next idle moment updates. So do SGLang's own gauges, which idle
        servers bring up to date every 30 seconds only."""
        self._dirty = True
        if self._collector is not None:
            self._collector.last_log_time = 0.0

    def idle(self) -> None:
        """No request is left: update if anything happened since the last time."""
        if self._dirty:
            self.update()

    def update(self) -> None:
        """Bring every metric up to the core and the tally."""
        core, tally = self._cache.core, self._cache.tally
        counts: Any = {**core.counters(), **vars(tally)}
        usage: Any = core.usage()
        for counter, value in self._counters:
            counter.to(value(counts))
        for source in SOURCES:
            self._cached[source].to(counts[f"tokens_{source}"])
            self._reused[source].to(counts[f"tokens_{source}"] * core.token_bytes)
        for phase, read in self._read.items():
            read.to(counts[f"{phase}_read_tokens"] * core.token_bytes)
        self._saved.to(counts["decode_saved_tokens"] * core.token_bytes)
        self._evicted.to(counts["tokens_evicted"])
        for gauge, measure in self._gauges:
            gauge.set(measure(core, usage))
        for state, pages in pages_by_state(usage).items():
            self._pages[state].set(pages)
        self._dirty = False
        self._due = time.monotonic() + INTERVAL_S

    def _tell_evicted(self, tokens: float) -> None:
        """SGLang's own counter: most evictions happen where pages are taken, and not in `VTensorCache.evict`."""
        if self._cache.metrics_collector is not None:
            self._cache.metrics_collector.increment_eviction_num_tokens(tokens)


def _family(known: dict[str, Any], kind: Any, name: str, text: str, labels: list[str], **options: str) -> Any:
    """A metric, made once for all values of its labels."""
    if name not in known:
        known[name] = kind(name=name, documentation=text, labelnames=labels, **options)
    return known[name]


def start(result: None, scheduler: Any, *_args: Any) -> None:  # noqa: ARG001
    """AFTER `Scheduler.init_metrics_reporter`: begin to count, where SGLang itself does."""
    cache, context = scheduler.tree_cache, scheduler.metrics_collector_context
    if isinstance(cache, VTensorCache) and context.current_scheduler_metrics_enabled:
        labels = scheduler.metrics_collector.labels
        cache.metrics = Metrics(cache, labels, scheduler.metrics_collector)
