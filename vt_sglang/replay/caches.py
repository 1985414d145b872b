# SPDX-License-Identifier: Apache-2.0
"""The project's core as a cache of a given size, without memory behind its pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from vt_sglang._core import KVCache
from vt_sglang.layout import Geometry
from vt_sglang.replay.work import Work

Progress = Callable[[int], None]
"""Called with the number of requests done since the last call."""

PROGRESS_REQUESTS = 64

MOST_PAGES = 2**32 - 2
"""What the core can name."""
MOST_MAPPED = 2**29
"""Entries of all slots' page tables: 2 GiB of memory."""


@dataclass
class Outcome:
    """What one cache made of a trace."""

    matched: list[int]
    """Units found, by request."""
    refused: int
    """Requests that the cache cannot hold: a server refuses them. They count as computed."""
    seconds: float
    """Time inside the cache's calls."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """How a cache is made, in units."""

    page_bytes: int
    unit_bytes: int
    slots: int
    """Virtual tensors for requests."""
    chunk: int
    """Units after which a prompt is recorded, as a server's chunked prefill does; eviction takes what was recorded at
    a time."""


def largest_pages(works: Sequence[Work], shape: Shape) -> int:
    """Pages with which nothing is ever evicted: as if nobody shared anything."""
    geometry = Geometry(shape.page_bytes, shape.unit_bytes)
    return sum(geometry.pages_for(len(work.units)) for work in works) + 1


def make(works: Sequence[Work], shape: Shape, pages: int) -> KVCache:
    """A cache of so many pages. ValueError, saying what to do, where such a one cannot be."""
    longest = Geometry(shape.page_bytes, shape.unit_bytes).pages_for(max(len(work.units) for work in works))
    if pages > MOST_PAGES or (shape.slots + 1) * longest > MOST_MAPPED:
        raise ValueError(
            f"pages of {shape.page_bytes:,} bytes are too small for this: the cache would have {pages:,} of them, at "
            f"most {MOST_PAGES:,} can be, and each of {shape.slots:,} slots {longest:,}, together at most "
            f"{MOST_MAPPED:,}; give a larger --page-bytes, or less of --slots, --grain or --token-bytes"
        )
    return KVCache(
        driver="none",
        page_bytes=shape.page_bytes,
        token_bytes=shape.unit_bytes,
        slots=shape.slots + 1,
        slot_tokens=max(len(work.units) for work in works),
        budget_pages=pages,
    )


def play(core: KVCache, works: Sequence[Work], shape: Shape, on_progress: Progress = lambda _: None) -> Outcome:
    """One request after the other, each through all that a server asks of its cache: match, lock, bind (which evicts),
    record chunk by chunk, grow by the output, record, release, unlock."""
    room = core.total_tokens
    matched_units: list[int] = []
    refused = 0
    seconds = 0.0
    chunk = shape.chunk
    for number, work in enumerate(works, start=1):
        if number % PROGRESS_REQUESTS == 0:
            on_progress(PROGRESS_REQUESTS)
        prompt = work.prompt
        if prompt > room:
            refused += 1
            matched_units.append(0)
            continue
        total = min(len(work.units), room)  # an output for which there is no room ends early
        began = perf_counter()
        matched = core.play(work.namespace, work.units, total, prompt, work.limit, chunk)
        seconds += perf_counter() - began
        matched_units.append(matched)
    on_progress(len(works) % PROGRESS_REQUESTS)
    return Outcome(matched_units, refused, seconds)


def held(core: KVCache) -> tuple[int, int]:
    """(units in the tree, pages that hold them)."""
    usage = core.usage()
    return usage["tree_tokens"], usage["held_pages"] - 1  # the padding page is nobody's


def details(core: KVCache, grain: int, computed_tokens: int) -> dict[str, Any]:
    """What the core counted: matched tokens by where they were found, pages by state, and what page rounding costs."""
    counters, usage = core.counters(), core.usage()
    found = {kind: counters[f"tokens_{kind}"] for kind in ("adopted", "aliased", "copied")}  # type: ignore[literal-required]
    # Of the tree's pages; the padding page is nobody's. A copied tail stands on two pages, and counts here.
    waste = (usage["held_pages"] - 1) * core.page_bytes - usage["tree_tokens"] * core.token_bytes
    return {
        "tokens": {kind: units * grain for kind, units in found.items()} | {"computed": computed_tokens},
        "bytes": {kind: units * core.token_bytes for kind, units in found.items()},
        "pages": {
            "budget": usage["budget_pages"],
            "held": usage["held_pages"] - 1,
            "free": usage["free_pages"],
            "not_created": usage["budget_pages"] - (usage["created_pages"] - 1),
            "evictable": usage["evictable_pages"],
            "created_total": counters["pages_created"],
            "mapped_total": counters["pages_mapped"],
            "nodes": usage["nodes"],
            "nodes_evicted_total": counters["nodes_evicted"],
        },
        "page_waste_bytes": waste,
    }
