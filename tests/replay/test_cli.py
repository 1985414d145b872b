# SPDX-License-Identifier: Apache-2.0
"""The command `replay` from its options to its tables, its JSON and its exit status."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replay_reference import random_requests
from typer.testing import CliRunner

from vt_sglang.cli import app
from vt_sglang.replay import radix

Write = Callable[..., Path]
Replay = Callable[..., Any]

SMALL = ("--token-bytes", "4", "--page-bytes", "16")


@pytest.fixture
def path(write: Write) -> Path:
    """60 requests of token ids."""
    return write(
        {
            "input_ids": it.tokens[: it.prompt].tolist(),
            "output_ids": it.tokens[it.prompt :].tolist(),
            "timestamp": it.time_s,
        }
        for it in random_requests(0, 60)
    )


def said(result: Any) -> str:
    """Output without the boxes that a usage error is put in."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_the_result_has_all_fields(replay: Replay, path: Path) -> None:
    result = replay(path, *SMALL, "--capacity", "50,400B,0.001M", "--no-radix")
    assert result.exit_code == 0, result.output
    found = result.json
    assert (found["schema"], found["kind"], found["grain_tokens"]) == (1, "replay", 1)
    assert {"date", "command_line", "versions", "machine"} <= found.keys()
    assert found["trace"]["requests"] == 60
    assert found["trace"]["duration_s"] == 59
    assert found["model"] == {"name": "4 bytes a token", "token_bytes": 4, "page_bytes": 16, "page_tokens": 4}
    assert [it["tokens"] for it in found["capacities"]] == [50, 100, 1000]
    assert [it["bytes"] for it in found["capacities"]] == [200, 400, 4000]
    infinite = found["infinite"]
    rates = [it["vtensor"]["hit_rate"] for it in found["capacities"]]
    assert rates == sorted(rates)
    assert rates[-1] == infinite["hit_rate"] == found["curve"][-1]["hit_rate"]
    for entry in found["capacities"]:
        ours = entry["vtensor"]
        assert entry["radix"] is None
        assert entry["times_faster"] is None
        assert ours["seconds"] > 0
        assert ours["cached_tokens"] + ours["tokens"]["computed"] == found["trace"]["prompt_tokens"]
        assert sum(ours["tokens"][kind] for kind in ("adopted", "aliased", "copied")) == ours["cached_tokens"]
        assert ours["bytes"] == {kind: 4 * ours["tokens"][kind] for kind in ("adopted", "aliased", "copied")}
    for rate in (infinite, *(it["vtensor"] for it in found["capacities"])):
        over_time = rate["over_time"]
        assert len(over_time) == 60
        assert over_time[-1] == {
            "time_s": 59,
            "prompt_tokens": found["trace"]["prompt_tokens"],
            "cached_tokens": rate["cached_tokens"],
        }
    assert sum(it["tokens"] for it in found["reuse_distance"]) == infinite["cached_tokens"]
    saved = [it["saved_tokens"] for it in found["prefixes"]]
    assert saved == sorted(saved, reverse=True)
    assert all(it["saved_tokens"] == it["requests"] * (it["end"] - it["start"]) for it in found["prefixes"])


def test_the_terminal_has_the_same_figures(replay: Replay, path: Path) -> None:
    result = replay(path, *SMALL, "--capacity", "50", "--no-radix")
    found = result.json
    output = said(result)
    assert f"{found['infinite']['hit_rate']:.1%}" in output
    assert f"{found['capacities'][0]['vtensor']['hit_rate']:.1%}" in output
    assert f"Knee of the hit-rate curve: {found['knee']['hit_rate']:.1%}" in output
    assert "Not compared with SGLang's RadixCache: --no-radix" in output


def test_over_time_has_at_most_200_entries(replay: Replay, write: Write) -> None:
    path = write({"input_ids": [n % 7, 1, 2]} for n in range(999))
    over_time = replay(path, *SMALL, "--no-radix").json["infinite"]["over_time"]
    assert len(over_time) == 200
    assert over_time[-1]["prompt_tokens"] == 3 * 999


def test_beside_radix_cache(replay: Replay, path: Path) -> None:
    if reason := radix.why_not():
        pytest.skip(f"SGLang cannot be imported: {reason}")
    entry = replay(path, *SMALL, "--capacity", "100000", "--repeats", "2").json["capacities"][0]
    assert entry["radix"]["hit_rate"] == entry["vtensor"]["hit_rate"]
    assert entry["radix"]["over_time"] == entry["vtensor"]["over_time"]
    assert entry["times_faster"] == entry["radix"]["seconds"] / entry["vtensor"]["seconds"]


def test_without_sglang_it_says_so(replay: Replay, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radix, "why_not", lambda: "ModuleNotFoundError: No module named 'sglang'")
    result = replay(path, *SMALL, "--capacity", "100")
    assert result.json["capacities"][0]["radix"] is None
    assert "Not compared with SGLang's RadixCache: ModuleNotFoundError" in said(result)


def test_capacities_are_chosen_where_none_are_given(replay: Replay, path: Path) -> None:
    found = replay(path, *SMALL, "--no-radix").json
    assert 1 <= len(found["capacities"]) <= 4
    assert found["capacities"][-1]["vtensor"]["refused_requests"] == 0
    assert found["capacities"][-1]["vtensor"]["hit_rate"] >= 0.9 * found["infinite"]["hit_rate"]


def test_chosen_capacities_allow_for_pages_that_are_not_full(replay: Replay, write: Write) -> None:
    """Sessions of 20 tokens on pages of 16 take two pages each."""
    path = write({"input_ids": list(range(100 * n, 100 * n + 20))} for _ in range(3) for n in range(50))
    found = replay(path, "--token-bytes", "4", "--page-bytes", "64", "--no-radix").json
    last = found["capacities"][-1]
    assert last["bytes"] == (50 * 2 + 1) * 64
    assert last["vtensor"]["hit_rate"] == found["infinite"]["hit_rate"] > 0.6


def test_prefixes_are_shown_as_text(replay: Replay, write: Write) -> None:
    chat = [
        {"messages": [{"role": "system", "content": "You are [bold] terse."}, {"role": "user", "content": str(n)}]}
        for n in range(5)
    ]
    result = replay(write(chat), "--no-radix")
    assert result.json["prefixes"][0]["text"] == "<system>You are [bold] terse.<end><user>"
    assert result.json["prefixes"][0]["requests"] == 4
    assert "<system>You are [bold] terse.<end><user>" in said(result)


def test_nothing_shared(replay: Replay, write: Write) -> None:
    result = replay(write({"input_ids": [n]} for n in range(5)), *SMALL, "--no-radix")
    assert result.exit_code == 0, result.output
    assert result.json["knee"] is None
    assert result.json["prefixes"] == result.json["reuse_distance"] == []
    assert "Knee of the hit-rate curve: none" in said(result)


def test_skipped_lines_are_counted(replay: Replay, write: Write) -> None:
    lines = write([{"input_ids": [1]}, "broken", {"input_ids": [1, 2]}])
    result = replay(lines, *SMALL, "--no-radix")
    assert result.exit_code == 2
    assert "line 2: Expecting value" in said(result)
    result = replay(lines, *SMALL, "--no-radix", "--skip-bad")
    assert result.json["trace"]["skipped"] == 1
    assert "Broken lines passed over: 1" in said(result)


def test_requests_larger_than_the_capacity(replay: Replay, write: Write) -> None:
    path = write([{"input_ids": [1] * 50}, {"input_ids": [1] * 50}, {"input_ids": [2, 3]}, {"input_ids": [2, 3]}])
    result = replay(path, *SMALL, "--capacity", "8", "--no-radix")
    ours = result.json["capacities"][0]["vtensor"]
    assert ours["refused_requests"] == 2
    assert ours["cached_tokens"] == 1
    assert "Requests larger than a capacity count as computed: up to 2" in said(result)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--capacity", "20G"), "'20G' is no capacity: write 20GiB for bytes"),
        (("--capacity", "3"), "--capacity 3: 12 bytes are less than one page of 16 bytes"),
        (("--capacity", "100,"), "'' is no capacity"),
        (("--page-bytes", "x"), "--page-bytes: 'x' is not a size in bytes"),
        (("--page-bytes", "0"), "--page-bytes 0: a page has from 1 to"),
        (("--kv-dtype", "int3"), "--kv-dtype int3: choose bfloat16"),
        (("--format", "mooncake"), "line 1: no hash_ids and no input_length"),
        (("--json", "nowhere/at/all.json"), "there is no folder nowhere/at"),
        (("--model", "llama-3-8b", "--model", "qwen3-8b"), "--model is given more than once"),
        (("--radix",), "--radix is given more than once"),
    ],
)
def test_usage_errors(path: Path, options: tuple[str, ...], reason: str) -> None:
    small = SMALL[:2] if "--page-bytes" in options else SMALL
    result = CliRunner().invoke(app, ["replay", str(path), *small, "--no-radix", *options])
    assert result.exit_code == 2
    assert reason in said(result)


def test_an_unknown_model_and_an_absent_file(path: Path) -> None:
    result = CliRunner().invoke(app, ["replay", str(path), "--model", "gpt-7", "--no-radix"])
    assert result.exit_code == 2
    assert "'gpt-7' is neither a config.json" in said(result)
    assert CliRunner().invoke(app, ["replay", str(path) + "x"]).exit_code == 2


def test_nothing_is_written_where_the_trace_is_broken(write: Write, tmp_path: Path) -> None:
    written = tmp_path / "result.json"
    written.write_text("before")
    path = write(["broken"])
    assert CliRunner().invoke(app, ["replay", str(path), "--json", str(written)]).exit_code == 2
    assert written.read_text() == "before"


def test_the_folder_of_the_result_is_made(path: Path, tmp_path: Path) -> None:
    written = tmp_path / "report" / "replay.json"
    result = CliRunner().invoke(app, ["replay", str(path), *SMALL, "--no-radix", "--json", str(written)])
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text())["kind"] == "replay"


def test_json_is_one_line(replay: Replay, path: Path, tmp_path: Path) -> None:
    replay(path, *SMALL, "--no-radix")
    assert json.loads((tmp_path / "result.json").read_text().splitlines()[0])["kind"] == "replay"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--capacity", "99999999999999999999999GiB"), "more than 72,057,594,037,927,936 bytes"),
        (("--page-bytes", "999999999999999999GiB"), "a page has from 1 to 72,057,594,037,927,936 bytes"),
        (("--token-bytes", "99999999999999999999"), "'--token-bytes'"),
        (("--grain", "100000000000"), "'--grain'"),
        (("--grain", "2000000000", "--token-bytes", "1000000000"), "more than 72,057,594,037,927,936 bytes"),
        (("--chunk", "99999999999999999999"), "'--chunk'"),
        (("--repeats", "99999999999999999999"), "'--repeats'"),
        (("--page-bytes", "1", "--token-bytes", "9999999"), "give a larger --page-bytes"),
        (("--grain", "2000000000"), "give a larger --page-bytes"),
    ],
)
def test_sizes_that_no_cache_has(path: Path, options: tuple[str, ...], reason: str) -> None:
    result = CliRunner().invoke(app, ["replay", str(path), "--no-radix", *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert reason in said(result)


def test_a_device_is_not_replaced_by_a_result(path: Path) -> None:
    result = CliRunner().invoke(app, ["replay", str(path), *SMALL, "--no-radix", "--json", "/dev/null"])
    assert result.exit_code == 2
    assert "is no file" in said(result)
    assert Path("/dev/null").is_char_device()


def test_a_result_that_cannot_be_written_is_refused_at_once(path: Path) -> None:
    result = CliRunner().invoke(app, ["replay", str(path), *SMALL, "--no-radix", "--json", "/proc/result.json"])
    assert result.exit_code == 2
    assert "--json /proc/result.json" in said(result)
    assert "hit rate" not in said(result).lower()


def test_the_trace_is_not_overwritten(path: Path) -> None:
    before = path.read_bytes()
    result = CliRunner().invoke(app, ["replay", str(path), *SMALL, "--no-radix", "--json", str(path)])
    assert result.exit_code == 2
    assert "is the trace itself" in said(result)
    assert path.read_bytes() == before


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_output_without_block_characters(write: Write, encoding: str) -> None:
    path = write([{"messages": [{"role": "user", "content": "a" * 99}]} for _ in range(3)])
    done = subprocess.run(
        [sys.executable, "-m", "vt_sglang", "replay", path, "--no-radix"],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"#####" in done.stdout
    assert b"a~" in done.stdout
    assert b"?" not in done.stdout
