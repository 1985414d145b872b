# SPDX-License-Identifier: Apache-2.0
"""The command `report` from its options to its exit status."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from report_results import RESULTS, chat_result, replay_result
from rich.console import Console
from typer.testing import CliRunner, Result

from vt_sglang.cli import app
from vt_sglang.report import picture, run, terminal
from vt_sglang.report.load import load
from vt_sglang.report.sections import sections

Save = Callable[[object, str], Path]
TREE = RESULTS / "tree.json"


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_page_and_tables(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("what was there, and longer " * 1_000_000)
    result = report(TREE, RESULTS / "chat.json", "-o", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")
    assert [it.name for it in tmp_path.iterdir()] == ["report.html"]
    row = json.loads(TREE.read_text())["results"][-1]
    assert f"{row['sglang_us']:,.1f}" in result.output, "us that SGLang's tree takes for one of its operations"
    server = json.loads((RESULTS / "chat.json").read_text())["servers"][1]
    assert f"{server['summary']['output_tokens_per_s']:,.1f}" in result.output, "tokens/s with virtual tensors"
    assert "Outputs: identical in all 84 requests" in result.output
    assert max(map(len, result.output.splitlines())) <= 100


def test_no_table(tmp_path: Path) -> None:
    result = report(TREE, "-o", tmp_path / "made" / "report.html", "--no-table")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "made" / "report.html").is_file()


def test_terminal_has_the_numbers(save: Save) -> None:
    """No number of a table is cut, however many columns there are; long tables are thinned from first to last."""
    paths = [save(replay_result(), "replay.json"), save(chat_result(repeats=True), "chat.json")]
    found = sections(load([*paths, *(RESULTS / f"{name}.json" for name in ("serve", "prefill"))]))
    console = Console(width=100)
    with console.capture() as capture:
        terminal.show(found, console)
    printed = capture.get()
    for section in found:
        for figure in section.figures:
            table = figure.table
            rows = range(len(table.rows)) if len(table.rows) <= terminal.ROWS else (0, len(table.rows) - 1)
            numbers = [index for index, column in enumerate(table.columns) if column.form]
            missing = [text for row in rows for it in numbers if (text := table.text(row, it)) not in printed]
            assert not missing, figure.name
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"schema": "x", "kind": "replay"}', '{"schema": 1e999, "kind": "tree"}']
)
def test_nothing_is_written_for_a_broken_file(tmp_path: Path, content: str) -> None:
    broken, page = tmp_path / "broken.json", tmp_path / "report.html"
    broken.write_text(content)
    result = report(TREE, broken, "-o", page)
    assert result.exit_code == 2
    assert str(broken) in result.output
    assert len(result.output.splitlines()) == 1
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((RESULTS / "none.json",), "No such file"),
        ((RESULTS,), "Is a directory"),
        ((TREE, "-o", "/none/at/report.html"), "there is no folder /none/at"),
        ((TREE, "-o", TREE / "report.html"), "is no folder"),
        ((TREE, "--picture", "/none/at/tree.png"), "there is no folder /none/at"),
        ((TREE, "--figure", "tree-times-faster"), "--figure chooses what --picture shows"),
        ((TREE, "--picture", "tree.pdf"), "pictures end in .png or .svg"),
        ((TREE, "--picture", "tree.png", "--figure", "soup"), "there is no plot soup; there are: tree-times-faster"),
        ((RESULTS / "decode.json", "--picture", "decode.png"), "which plot? give --figure"),
    ],
)
def test_wrong_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = report(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture.shutil, "which", lambda _: None)
    result = report(TREE, "--picture", tmp_path / "tree.png")
    assert result.exit_code == 1
    assert "apt install chromium" in result.output
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    result = report(TREE, "-o", tmp_path / "report.html")
    assert result.exit_code == 1
    assert 'pip install "vt-sglang[report]"' in result.output
    assert report(TREE).exit_code == 0, "tables need no Plotly"
    assert list(tmp_path.iterdir()) == []


def test_a_browser_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    browser.chmod(0o755)
    monkeypatch.setattr(picture.shutil, "which", lambda _: str(browser))
    result = report(TREE, "--picture", tmp_path / "tree.svg")
    assert result.exit_code == 1
    assert "ended with 3 and said: no display" in result.output


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium (Debian: apt install chromium)")
def test_picture(tmp_path: Path) -> None:
    result = report(TREE, "--picture", tmp_path / "tree.png", "--no-table")
    assert result.exit_code == 0, result.output
    light, dark = ((tmp_path / name).read_bytes() for name in ("tree.png", "tree-dark.png"))
    assert light != dark
    for content in (light, dark):
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert width == 1200
        assert height > 600
        assert len(content) < 150_000


def test_a_result_is_not_overwritten(tmp_path: Path) -> None:
    copy = tmp_path / "tree.json"
    copy.write_bytes(TREE.read_bytes())
    result = report(copy, "-o", copy)
    assert result.exit_code == 2
    assert "one of the results that are read" in result.output
    assert copy.read_bytes() == TREE.read_bytes()


def test_what_is_not_unicode_is_replaced(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ok\xff.json"))
    value = replay_result()
    value["model"]["name"] = "a \ud800 model"
    path.write_text(json.dumps(value))
    page = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "vt_sglang", "report", path, "-o", page], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok?" in done.stdout
    assert "ok?" in page.read_text()
    assert "a ? model" in page.read_text()
