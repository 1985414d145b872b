# SPDX-License-Identifier: Apache-2.0
"""What the JSON file of every command begins with: which kind of result it is, and where it comes from."""

import shlex
import sys
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from vt_sglang import machine

SCHEMA = 1
"""Goes up when a field changes its meaning or goes away."""


def header(kind: str) -> dict[str, Any]:
    """The fields that all results have, for the time of the call.

    Args:
        kind: what was run, by which readers of the file know its other fields: `chat`, `replay`, ...
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": f"{_program()} {shlex.join(sys.argv[1:])}",
        "versions": machine.versions(),
        "machine": {"cpu": machine.cpu_model(), "cores": machine.cores(), "gpus": machine.gpus().names},
    }


def _program() -> str:
    """What was typed, without where it is installed."""
    name = PurePath(sys.argv[0]).name
    return "python -m vt_sglang" if name == "__main__.py" else name
