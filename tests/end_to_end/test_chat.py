# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang chat` with real servers: stock SGLang and SGLang on virtual tensors say the same, from caches that hold as
much."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MTBENCH = Path(__file__).parents[3] / "shared/traces/mtbench101.jsonl.gz"


def _chat(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run the command; its report and what it printed. AssertionError if its exit status is not 0."""
    command = [sys.executable, "-c", "from vt_sglang.cli import app; app()", "chat", "--device", "cpu", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((folder / "report/chat.json").read_text()), done.stdout


def _check(report: dict[str, Any], requests: int) -> None:
    assert [server["name"] for server in report["servers"]] == ["stock", "vtensor"]
    assert report["comparison"]["requests"] == requests
    assert report["comparison"]["first_difference"] is None
    assert report["comparison"]["cached_at_least"]
    stock, vtensor = report["servers"]
    assert len(stock["requests"]) == len(vtensor["requests"]) == requests
    assert stock["leaks"] == vtensor["leaks"] == []
    counters = vtensor["vtensor"]["counters"]
    assert counters["binds"] >= requests
    assert min(counters[name] for name in ("pages_created", "pages_aliased", "tails_extended")) > 0


def test_several_clients(tmp_path: Path) -> None:
    """As `make chat` runs it, in small: shared system prompt, turns, forks, several clients at once."""
    report, printed = _chat(tmp_path, "--num-dialogues", "10", "--system-tokens", "256", "--output-tokens", "12")
    _check(report, report["workload"]["planned_requests"])
    assert report["workload"]["clients"] > 1
    assert "Outputs: identical" in printed
    assert report["servers"][1]["vtensor"]["counters"]["tails_copied"] > 0  # the forks


@pytest.mark.skipif(not MTBENCH.exists(), reason=f"{MTBENCH.name} is not here")
def test_a_file_of_dialogues_with_one_client(tmp_path: Path) -> None:
    """The first 25 dialogues of MT-Bench-101: every single request finds as much in the cache as on stock."""
    options = ("--dialogues", str(MTBENCH), "--limit", "25", "--clients", "1", "--output-tokens", "8")
    report, _ = _chat(tmp_path, *options)
    _check(report, report["workload"]["planned_requests"])
    assert report["workload"]["lost_turns"] == 0
    assert report["comparison"]["cached_by_request"]
    stock, vtensor = (server["requests"] for server in report["servers"])
    for theirs, mine in zip(stock, vtensor, strict=True):
        assert (mine["dialogue"], mine["turn"]) == (theirs["dialogue"], theirs["turn"])
        assert mine["output_ids"] == theirs["output_ids"]
        assert mine["cached_tokens"] >= theirs["cached_tokens"]
