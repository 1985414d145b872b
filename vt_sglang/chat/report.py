# SPDX-License-Identifier: Apache-2.0
"""Results for programs: one JSON file that says what was run, where, and what came of it."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vt_sglang import machine
from vt_sglang.chat.compare import Comparison
from vt_sglang.chat.files import write_whole
from vt_sglang.chat.measure import summarize
from vt_sglang.chat.play import Request
from vt_sglang.chat.result import Result

SCHEMA = 1
"""Goes up when a field changes its meaning or goes away."""


def write(
    path: Path, workload: dict[str, Any], results: Sequence[Result], comparison: Comparison | None, exit_status: int
) -> None:
    """Write the report in one step. Times are in milliseconds or seconds, as their names say."""
    report = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": shlex.join(sys.argv),
        "versions": machine.versions(),
        "machine": {"cpu": machine.cpu_model(), "cores": machine.cores(), "gpus": machine.gpus().names},
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
