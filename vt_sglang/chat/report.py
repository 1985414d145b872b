# SPDX-License-Identifier: Apache-2.0
"""Results for programs: one JSON file that says what was run, where, and what came of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vt_sglang import result_file
from vt_sglang.chat.compare import Comparison
from vt_sglang.chat.files import write_whole
from vt_sglang.chat.measure import summarize
from vt_sglang.chat.play import Request
from vt_sglang.chat.result import Result


def write(
    path: Path, workload: dict[str, Any], results: Sequence[Result], comparison: Comparison | None, exit_status: int
) -> None:
    """Write the report in one step. Times are in milliseconds or seconds, as their names say."""
    report = {
        **result_file.header("chat"),
        "workload": workload,
        "servers": [_server(result) for result in results],
        "comparison": None if comparison is None else asdict(comparison),
        "exit_status": exit_status,
    }
    # Without indentation, which would put every token id on a line of its own.
    write_whole(path, json.dumps(report, default=str).encode() + b"\n")


def _server(result: Result) -> dict[str, Any]:
    return {
        "name": result.launch.name,
        "command": list(result.launch.command),
        "environment": result.launch.environment,
        "start_s": result.start_s,
        "play_s": result.played.seconds,
        "total_tokens": result.total_tokens,
        "summary": asdict(summarize(result.played)),
        "leaks": result.leaks,
        "vtensor": result.vtensor,
        "requests": [_request(request) for request in sorted(result.played.requests, key=_place)],
    }


def _place(request: Request) -> tuple[int, int]:
    return request.dialogue, request.turn


def _request(request: Request) -> dict[str, Any]:
    return {"dialogue": request.dialogue, "turn": request.turn, "error": request.error} | asdict(request.answer)
