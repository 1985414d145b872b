# SPDX-License-Identifier: Apache-2.0
"""The result of a replay, for programs."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_sglang.chat.files import write_whole
from vt_sglang.replay.caches import Outcome
from vt_sglang.replay.distances import Distances
from vt_sglang.replay.request import Trace
from vt_sglang.replay.settings import Settings
from vt_sglang.replay.sizes import Model
from vt_sglang.replay.work import Work, cached_tokens
from vt_sglang.result_file import header

OVER_TIME = 200
"""Entries of `over_time`, at most."""
PREFIXES = 20
TEXT_TOKENS = 240

Busiest = tuple[str | None, int, int, int, list[int]]


@dataclass(frozen=True)
class Run:
    """What came of one capacity."""

    capacity: int
    """Bytes."""
    ours: Outcome
    stock: Outcome | None


def make(
    *,
    settings: Settings,
    trace: Trace,
    model: Model,
    page_bytes: int,
    works: Sequence[Work],
    infinite: Outcome,
    runs: Sequence[Run],
    distances: Distances,
    points: Sequence[tuple[int, int]],
    knee: tuple[int, int] | None,
    busiest: Sequence[Busiest],
    without_radix: str | None,
) -> dict[str, Any]:
    """The whole result; docs/replay.md says what each field means. Counts in units become tokens here."""
    grain = settings.grain

    def point(capacity: int, hits: int) -> dict[str, Any]:
        tokens = capacity * grain
        # Where the last block of a prompt is partly filled, a block counts for less than its room.
        rate = _rate(min(hits * grain, reachable), trace.prompt_tokens)
        return {"tokens": tokens, "bytes": tokens * model.token_bytes, "hit_rate": rate}

    reachable = sum(cached_tokens(it, matched, grain) for it, matched in zip(works, infinite.matched, strict=True))
    return header("replay") | {
        "trace": {
            "path": str(trace.path),
            "format": trace.format,
            "requests": len(trace.requests),
            "skipped": trace.skipped,
            "prompt_tokens": trace.prompt_tokens,
            "output_tokens": trace.output_tokens,
            "duration_s": works[-1].time_s if trace.timed else None,
        },
        "model": {
            "name": model.name,
            "token_bytes": model.token_bytes,
            "page_bytes": page_bytes,
            "page_tokens": page_bytes / model.token_bytes,
        },
        "grain_tokens": grain,
        "infinite": _rates(infinite, works, grain),
        "capacities": [_run(run, works, model, grain) for run in runs],
        "without_radix": without_radix,
        "curve": [point(*it) for it in points],
        "knee": None if knee is None else point(*knee),
        "reuse_distance": [
            {"up_to_tokens": bound * grain, "tokens": uses * grain} for bound, uses in distances.histogram()
        ],
        "prefixes": [_prefix(it, trace, works, grain) for it in busiest if it[3] > 0],
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """In one step."""
    write_whole(path, json.dumps(result).encode() + b"\n")


def _run(run: Run, works: Sequence[Work], model: Model, grain: int) -> dict[str, Any]:
    ours = _rates(run.ours, works, grain) | {"seconds": run.ours.seconds} | run.ours.details
    radix = None
    if run.stock is not None:
        radix = _rates(run.stock, works, grain) | {"seconds": run.stock.seconds}
    return {
        "tokens": run.capacity // model.token_bytes,
        "bytes": run.capacity,
        "vtensor": ours,
        "radix": radix,
        "times_faster": run.stock.seconds / run.ours.seconds if run.stock and run.ours.seconds > 0 else None,
    }


def _rates(outcome: Outcome, works: Sequence[Work], grain: int) -> dict[str, Any]:
    """Hits by tokens and by requests, over all and over time."""
    marks = {-(-len(works) * mark // OVER_TIME) for mark in range(1, OVER_TIME + 1)}
    prompt = cached = hits = 0
    over_time = []
    for number, (work, matched) in enumerate(zip(works, outcome.matched, strict=True), start=1):
        prompt += work.prompt_tokens
        cached += cached_tokens(work, matched, grain)
        hits += matched > 0
        if number in marks:
            over_time.append({"time_s": work.time_s, "prompt_tokens": prompt, "cached_tokens": cached})
    return {
        "cached_tokens": cached,
        "hit_rate": _rate(cached, prompt),
        "request_hit_rate": hits / len(works),
        "refused_requests": outcome.refused,
        "over_time": over_time,
    }


def _prefix(busiest: Busiest, trace: Trace, works: Sequence[Work], grain: int) -> dict[str, Any]:
    namespace, start, end, requests, first_units = busiest
    first_units = list(first_units)
    span = _span(namespace, start, end, first_units, trace, works, grain)
    entry: dict[str, Any] = {
        "start": start * grain,
        "end": end * grain,
        "requests": requests,
        "saved_tokens": requests * (end - start) * grain,
        "first_ids": span[:16],
    }
    if trace.texts is not None:
        entry["text"] = trace.texts.decode(span)
    return entry


def _span(
    namespace: str | None,
    start: int,
    end: int,
    first_units: list[int],
    trace: Trace,
    works: Sequence[Work],
    grain: int,
) -> list[int]:
    """The first tokens of a node's span, from a request that runs through it."""
    first = array("q", first_units)
    for request, work in zip(trace.requests, works, strict=True):
        if (work.namespace or "") == (namespace or "") and work.units[start : start + len(first)] == first:
            return request.tokens[start * grain : min(end * grain, start * grain + TEXT_TOKENS)].tolist()
    return first_units


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
