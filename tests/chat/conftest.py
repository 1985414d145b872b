# SPDX-License-Identifier: Apache-2.0
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vt_sglang.chat import run as run_module
from vt_sglang.chat import runs
from vt_sglang.chat.launch import Launch
from vt_sglang.cli import app

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
SMALL = ("--num-dialogues", "4", "--turns", "3", "--system-tokens", "40", "--user-tokens", "10", "--output-tokens", "4")


@pytest.fixture
def fake() -> Callable[..., Launch]:
    """Launch lines of the fake server: `fake(name, *options)`."""

    def launch(name: str, *options: str) -> Launch:
        return Launch(name, [sys.executable, str(FAKE_SERVER), *options])

    return launch


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder of its own, and wait for no idle server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "IDLE_S", 0.0)


@pytest.fixture
def chat(here: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:  # noqa: ARG001
    """Run `vt-sglang chat` with these servers in place of SGLang's."""

    def invoke(servers: list[Launch], *options: str, shape: tuple[str, ...] = SMALL) -> Result:
        monkeypatch.setattr(run_module, "chosen_launches", lambda *_: servers)
        return CliRunner().invoke(app, ["chat", *shape, *options])

    return invoke


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process runs; a zombie does not."""

    def look(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    return look
