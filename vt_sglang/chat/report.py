# SPDX-License-Identifier: Apache-2.0
"""Results for programs: one JSON file that says what was run, where, and what came of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vt_sglang import result_file
from vt_sglang.chat.compare import Comparison
from vt_sglang.chat.files import write_whole
from vt_sglang.chat.measure import Limits, by_cached_share, by_turn, summarize
from vt_sglang.chat.play import Request
from vt_sglang.chat.result import Result
from vt_sglang.chat.settings import Settings
from vt_sglang.chat.stats import CONFIDENCE, METHOD

BULKY = ("output_ids",)


def write(
    settings: Settings,
    workload: dict[str, Any],
    sides: Mapping[str, Sequence[Result]],
    comparisons: Mapping[str, Comparison],
    figures: Sequence[Mapping[str, Any]] | None,
    error: str | None,
    exit_status: int,
) -> None:
    """Write the report in one step. Times are in milliseconds or seconds, as their names say.

    Args:
        workload: the settings, and what was made of them.
        sides: the runs of each server, by name.
        comparisons: of each server but the first with the first.
        figures: what the repeats say; None for a single run.
        error: what ended the runs before the last; None if nothing did.
    """
    limits = Limits(settings.ttft_limit_ms, settings.itl_limit_ms)
    clients = None if settings.load.is_open or settings.saturation else settings.clients
    said = {name: asdict(comparison) for name, comparison in comparisons.items()}
    report = {
        **result_file.header("chat"),
        "workload": workload,
        "servers": [_server(runs, limits, clients) for runs in sides.values()],
        "comparison": next(iter(said.values()), None),
        "comparisons": said,
        "statistics": None if figures is None else {"confidence": CONFIDENCE, "method": METHOD},
        "figures": figures,
        "error": error and error.splitlines()[0],
        "exit_status": exit_status,
    }
    # Without indentation, which would put every token id on a line of its own.
    write_whole(settings.report, json.dumps(report, default=str).encode() + b"\n")


def _server(runs: Sequence[Result], limits: Limits, clients: int | None) -> dict[str, Any]:
    """A server by its first run, and in `runs` all of them if there are several."""
    first = runs[0]
    server = {
        "name": first.launch.name,
        "command": list(first.launch.command),
        "environment": first.launch.environment,
        "url": first.launch.url,
        **_run(first, limits, clients),
    }
    if first.search is not None:
        server["saturation"] = asdict(first.search)
    if len(runs) > 1:
        server["runs"] = [_run(run, limits, clients) for run in runs]
        for run in server["runs"]:
            run["requests"] = [{k: v for k, v in it.items() if k not in BULKY} for it in run["requests"]]
    return server


def _run(result: Result, limits: Limits, clients: int | None) -> dict[str, Any]:
    summary = asdict(summarize(result.played, limits))
    rate = summary["output_tokens_per_s"]
    summary["output_tokens_per_s_per_client"] = rate / clients if rate is not None and clients else None
    return {
        "repeat": result.repeat,
        "order": result.order,
        "start_s": result.start_s,
        "play_s": result.played.seconds,
        "total_tokens": result.total_tokens,
        "flushed": result.flushed,
        "summary": summary,
        "by_turn": by_turn(result.played),
        "by_cached_share": by_cached_share(result.played),
        "memory": result.memory,
        "leaks": result.leaks,
        "vtensor": result.vtensor,
        "requests": [_request(request) for request in sorted(result.played.requests, key=_place)],
    }


def _place(request: Request) -> tuple[int, int]:
    return request.dialogue, request.turn


def _request(request: Request) -> dict[str, Any]:
    """Times to the first and the last token count from when the request was due: `wait_ms` is a part of them."""
    failed = request.error is not None
    return {
        "dialogue": request.dialogue,
        "turn": request.turn,
        "error": request.error,
        **asdict(request.answer),
        "scheduled_s": round(request.scheduled_s, 6),
        "start_s": round(request.start_s, 6),
        "wait_ms": request.wait_ms,
        "late_ms": request.late_ms,
        "ttft_ms": 0.0 if failed else request.ttft_ms,
        "latency_ms": 0.0 if failed else request.latency_ms,
    }
