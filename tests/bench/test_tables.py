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
        "bench/steady_served_table.py",
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


def test_a_trace_on_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    tables = importlib.import_module("tables")
    stock = {"total_tokens": 400_000, "hit_rate": 0.3, "ideal_hit_rate": 0.31, "of_ideal": 0.3 / 0.31, "seconds": 200.0}
    stock |= {"at_server_mean": 20.5, "at_server_most": 61, "before_first_token_mean": 12.25, "late_p99_ms": 1.5}
    stock |= {"prompt_tokens": 5_000_000, "cached_tokens": 1_500_000, "output_tokens_per_s": 1200.0}
    stock |= {"ttft_p50_ms": 900.0, "ttft_p99_ms": 4000.0, "inter_token_p50_ms": 30.0}
    driver = {"driver_calls_per_1000_tokens": 0.5, "pages_moved_per_1000_tokens": 7.0, "share": 0.001}
    core = {"cache": {"driver": "cuda", "page_bytes": 2**21}, "pages": 25_000, "clients": 20, "hit_rate": 0.305}
    core |= {"ideal_hit_rate": 0.31} | driver
    trace = {"name": "t.jsonl", "requests": 686, "skipped": 2, "prompt_tokens": 5_000_000, "output_tokens": 240_000}
    results = {"trace": trace | {"seconds": 3600.0}, "clients": None, "speed": 20.0, "count_of_passes": 2, "core": core}
    results |= {
        "servers": {"stock": stock, "vtensor": stock | {"total_tokens": 399_984}},
        "drivers": {"vtensor": driver},
    }
    results["targets"] = {"vtensor: cached share": {"measured": 0.01, "most": 0.02, "reached": True}}
    result = {"case": "served-trace", "results": results, "versions": {"python": "3.12"}, "machine": {"gpus": ["H100"]}}
    result |= {"command_line": "python bench/steady.py served-trace t.jsonl", "date": "2026-11-26T00:00:00"}
    (tmp_path / "more").mkdir()
    (tmp_path / "more/steady-trace.json").write_text(json.dumps(result))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = tables._table("steady-trace").splitlines()
    assert lines[:2] == [
        "<!-- steady-trace -->",
        "`python bench/steady.py served-trace t.jsonl`, 2026-11-26, H100; python 3.12.",
    ]
    assert lines[3] == (
        "t.jsonl: 686 requests (2 longer ones left out) with 5,000,000 prompt tokens and 240,000 of answers, sent at "
        "its times, 3,600 s, divided by 20; the last of 2 passes, each with other ids; servers one after the other."
    )
    assert lines[5:9] == [
        "|  | stock | vtensor |",
        "| --- | --- | --- |",
        "| memory, tokens | 400,000 | 399,984 |",
        "| cached, of prompt tokens | 30.00% | 30.00% |",
    ]
    assert "| cached, of the LRU's | 96.8% | 96.8% |" in lines
    assert "| requests at the server, mean / most | 20.5 / 61 | 20.5 / 61 |" in lines
    assert "| prompt tokens computed/s | 17,500 | 17,500 |" in lines
    assert "| driver calls per 1,000 tokens | - | 0.5000 |" in lines
    (told,) = [line for line in lines if line.startswith("On the core")]
    assert "(cuda driver, 25,000 pages of 2 MiB, 20 at a time): 30.50% cached" in told
    assert lines[-2:] == ["| vtensor: cached share | 0.01 | 0.02 | yes |", "<!-- end -->"]
    results |= {"clients": 16, "speed": None, "count_of_passes": 1}
    del results["core"]
    (tmp_path / "more/steady-trace.json").write_text(json.dumps(result))
    text = tables._table("steady-trace")
    assert "of answers, in its order, 16 at a time; servers" in text
    assert "On the core" not in text


def test_results_name_their_command_and_no_path_of_a_machine() -> None:
    for path in (ROOT / "bench/results").rglob("*.json"):
        text = path.read_text()
        assert '"command' in text, path
        assert '"date"' in text, path
        assert '"/' not in text, path
