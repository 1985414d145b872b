# SPDX-License-Identifier: Apache-2.0
"""Traces in files, and the command that replays them."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vt_sglang.cli import app

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("replay_reference")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write objects, or lines as they are, to a file."""

    def to_file(lines: Iterable[Any], name: str = "trace.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return to_file


@pytest.fixture
def replay(tmp_path: Path) -> Callable[..., Result]:
    """Run `vt-sglang replay`; the result has the JSON written as `.json`, where there is any."""

    def invoke(path: Path, *options: str) -> Any:
        written = tmp_path / "result.json"
        result: Any = CliRunner().invoke(app, ["replay", str(path), "--json", str(written), *options])
        result.json = json.loads(written.read_text()) if result.exit_code == 0 else None
        return result

    return invoke
