# SPDX-License-Identifier: Apache-2.0
"""What the documents say was measured is what bench/results holds."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "bench/tables.py"), "--check"], capture_output=True, text=True, check=False
    )


def test_tables_are_those_of_the_results() -> None:
    done = _check(ROOT)
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_the_same_run() -> None:
    result = json.loads((ROOT / "bench/results/chat.json").read_text())
    stock, vtensor = (server["summary"] for server in result["servers"])
    counters = result["servers"][1]["vtensor"]["counters"]
    shown = {
        "requests": (f"{stock['requests']:,}", f"{vtensor['requests']:,}"),
        "cached tokens": (f"{stock['cached_tokens']:,}", f"{vtensor['cached_tokens']:,}"),
        "TTFT p50, ms": (f"{stock['ttft_p50_ms']:.1f}", f"{vtensor['ttft_p50_ms']:.1f}"),
        "TTFT p99, ms": (f"{stock['ttft_p99_ms']:.1f}", f"{vtensor['ttft_p99_ms']:.1f}"),
        "output tokens/s": (f"{stock['output_tokens_per_s']:.1f}", f"{vtensor['output_tokens_per_s']:.1f}"),
        "pages aliased": ("-", f"{counters['pages_aliased']:,}"),
        "tails extended in place": ("-", f"{counters['tails_extended']:,}"),
    }
    rows = [
        line.strip("│").split("│") for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("│")
    ]
    found = {name.strip(): (left.strip(), right.strip()) for name, left, right in rows[1:]}
    assert rows[0][1].strip() == "stock"
    assert found == shown


def test_a_changed_figure_is_found(tmp_path: Path) -> None:
    for name in (
        "bench/tables.py",
        "bench/serve_compare.py",
        "bench/steady_table.py",
        "docs/performance.md",
        *map(str, (ROOT / "bench/results").rglob("*.json")),
    ):
        source = ROOT / name
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    assert _check(tmp_path).returncode == 0
    document = tmp_path / "docs/performance.md"
    document.write_text(document.read_text().replace("| prompt tokens | ", "| prompt tokens | 1"))
    done = _check(tmp_path)
    assert done.returncode == 1
    assert "bench/tables.py" in done.stderr


def test_prefill_with_and_without_the_kernel_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    tables = importlib.import_module("tables")
    row = {"shape": "1: 0 + 8", "gigaflop": 500.0, "fa3_page1_us": 900.0, "sglang_triton_us": 3000.0}
    row |= {"fa3_contiguous_us": 800.0, "triton_us": 1200.0}
    header, _, line, mean = tables._prefill({"results": [row]}).splitlines()
    assert "Hopper" not in header
    assert line == "| 1: 0 + 8 | 556 | 167 | 625 | 417 | 2.50 | 0.750 | 1.125 |"
    assert mean == "| mean |  |  |  |  | 2.50 | 0.750 | 1.125 |"
    header, _, line, mean = tables._prefill({"results": [row | {"hopper_us": 1000.0}]}).splitlines()
    assert header.split(" | ")[5:] == [
        "Hopper", "over SGLang's", "over FA3 page 1", "FA3 contiguous over page 1", "over FA3 contiguous |",
    ]  # fmt: skip
    assert line == "| 1: 0 + 8 | 556 | 167 | 625 | 417 | 500 | 3.00 | 0.900 | 1.125 | 0.800 |"
    assert mean == "| mean |  |  |  |  |  | 3.00 | 0.900 | 1.125 | 0.800 |"


def test_prefill_with_what_auto_takes_and_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    tables = importlib.import_module("tables")
    row = {"shape": "1: 0 + 8", "gigaflop": 500.0, "fa3_page1_us": 900.0, "sglang_triton_us": 3000.0}
    row |= {"fa3_contiguous_us": 800.0, "triton_us": 1200.0, "hopper_us": 1000.0, "floor_us": 400.0}
    row |= {"auto": "fa3_contiguous", "auto_us": 800.0}
    header, _, line, mean = tables._prefill({"results": [row]}).splitlines()
    assert header.endswith("| over FA3 contiguous | auto over page 1 | auto | floor, us | of the floor |")
    assert line.endswith("| 0.800 | 1.125 | FA3 contiguous | 400.0 | 50% |")
    assert mean.endswith("| 0.800 | 1.125 |  |  |  |")
    assert len({it.count("|") for it in (header, line, mean)}) == 1


def test_decode_with_flash_attention_over_virtual_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    tables = importlib.import_module("tables")
    row = {"shape": "1 x 8", "fa3_page1_us": 60.0, "fa3_page64_us": 50.0, "triton_us": 40.0}
    row |= {"ratio": 1.25, "floor_us": 30.0}
    header, _, line, mean = tables._decode({"results": [row]}).splitlines()
    assert "contiguous" not in header
    assert line == "| 1 x 8 | 60.0 | 50.0 | 40.0 | 1.500 | 1.250 | 30.0 | 75% |"
    header, _, line, mean = tables._decode({"results": [row | {"fa3_contiguous_us": 44.0}]}).splitlines()
    assert header.split(" | ")[2:5] == ["FA3 page 64", "FA3 contiguous", "Triton"]
    assert line == "| 1 x 8 | 60.0 | 50.0 | 44.0 | 40.0 | 1.500 | 1.250 | 30.0 | 75% |"
    assert mean == "| mean |  |  |  |  | 1.500 | 1.250 |  |  |"


def test_results_name_their_command_and_no_path_of_a_machine() -> None:
    for path in (ROOT / "bench/results").rglob("*.json"):
        text = path.read_text()
        assert '"command' in text, path
        assert '"date"' in text, path
        assert '"/' not in text, path
