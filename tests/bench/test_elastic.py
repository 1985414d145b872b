# SPDX-License-Identifier: Apache-2.0
"""The benchmark of memory given back: what it refuses, and a run on the toy model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "bench/elastic.py")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clients", "0"], "0 is too few"),
        (["--first", "-3"], "not a whole number"),
        (["--idle-trim", "0"], "give some seconds"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_with_real_servers(tmp_path: Path) -> None:
    load = ["--clients", "2", "--first", "300", "--output", "4", "--runs", "1", "--max-total-tokens", "20000"]
    options = [*load, "--idle-trim", "3", "--logs", str(tmp_path), "--json", str(tmp_path / "elastic.json")]
    done = subprocess.run([*COMMAND, *options], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    said = json.loads((tmp_path / "elastic.json").read_text())
    assert '"/' not in json.dumps(said)
    found = said["results"]
    (trimmed,) = found["trimmed_kv_bytes"]
    (again,) = found["returning"]  # how much depends on whether both clients are at work at a time
    assert 0 < trimmed < again["kv_bytes"] <= found["load_kv_bytes"] < found["stock_kv_bytes"]
