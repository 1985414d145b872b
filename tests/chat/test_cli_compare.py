# SPDX-License-Identifier: Apache-2.0
"""Comparisons of any servers, in repeats, on fake ones."""

import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vt_sglang.chat import launch, run
from vt_sglang.chat.launch import NO_PLUGINS, Launch, ServerOptions
from vt_sglang.chat.runs import order
from vt_sglang.chat.settings import Side
from vt_sglang.chat.sides import parse
from vt_sglang.cli import app

pytestmark = pytest.mark.usefixtures("here")

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
SMALL = ("--num-dialogues", "3", "--turns", "2", "--system-tokens", "20", "--user-tokens", "8", "--forks", "0")
REQUESTS = 6

Fake = Callable[..., Launch]
Chat = Callable[..., Result]


def report() -> dict[str, Any]:
    return dict(json.loads(Path("report/chat.json").read_text()))


def test_no_server_is_always_first() -> None:
    names = [Launch(name, []) for name in "ABC"]
    orders = ["".join(it.name for it in order(names[:2], repeat)) for repeat in range(4)]
    assert orders == ["AB", "BA", "AB", "BA"]
    assert ["".join(it.name for it in order(names, repeat)) for repeat in range(4)] == ["ABC", "BCA", "CAB", "ABC"]


@pytest.mark.parametrize("how", [[], ["--together", "--warm-up", "1"]])
def test_repeats(chat: Chat, fake: Fake, how: list[str]) -> None:
    servers = [fake("stock"), fake("vtensor", "--vtensor-leaks", "0")]
    result = chat(servers, "--repeats", "2", "--clients", "1", "--output-tokens", "4", *how, shape=SMALL)
    assert result.exit_code == 0, result.output
    assert f"Outputs: identical in all {2 * REQUESTS} requests" in result.output
    assert "median; mean" in result.output
    assert "stock" in result.output
    said = report()
    runs = {server["name"]: server["runs"] for server in said["servers"]}
    assert [(run["repeat"], run["order"]) for run in runs["stock"]] == [(0, 0), (1, 3)]
    assert [(run["repeat"], run["order"]) for run in runs["vtensor"]] == [(0, 1), (1, 2)]
    for server in said["servers"]:
        for repeat in server["runs"]:
            # From an empty cache, every time.
            assert repeat["summary"]["cached_tokens"] == server["summary"]["cached_tokens"]
            assert repeat["requests"][0]["cached_tokens"] == 0
            assert repeat["flushed"] == (True if how else None)
            assert len(repeat["requests"]) == REQUESTS
            assert "output_ids" not in repeat["requests"][0]
        assert server["requests"][0]["output_ids"]
    figures = {row["metric"]: row for row in said["figures"]}
    rates = [[run["summary"]["output_tokens_per_s"] for run in runs[name]] for name in ("stock", "vtensor")]
    row = figures["output_tokens_per_s"]
    assert row["sides"]["stock"]["mean"] == pytest.approx(sum(rates[0]) / 2)
    assert row["sides"]["stock"]["ci_low"] < row["sides"]["stock"]["mean"] < row["sides"]["stock"]["ci_high"]
    pairs = [other / one for one, other in zip(*rates, strict=True)]
    assert row["beside"]["vtensor"]["ratio"] == pytest.approx((pairs[0] * pairs[1]) ** 0.5)
    assert row["beside"]["vtensor"]["verdict"] in ("ahead", "behind", "within noise")
    assert figures["hit_rate"]["beside"]["vtensor"]["verdict"] == "within noise"
    assert said["statistics"]["confidence"] == 0.95
    assert said["comparisons"].keys() == {"vtensor"}


def test_a_server_that_keeps_its_cache_cannot_be_measured_twice(chat: Chat, fake: Fake) -> None:
    result = chat([fake("a", "--keep-cache")], "--repeats", "2", "--together", "--sample-every", "0", shape=SMALL)
    assert result.exit_code == 1
    assert "Ended early: a: " in result.output
    assert "tokens of a prompt outlived a flush" in report()["error"]
    assert report()["servers"][0]["summary"]["requests"] == REQUESTS  # what was measured before is kept


def test_whole_launch_lines_and_more_than_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences are told, and are no failure: other launch lines may say other things."""
    monkeypatch.setattr(run.machine, "installed", lambda _: "0.5.17")
    monkeypatch.setattr(launch, "LAUNCHER", str(FAKE_SERVER))
    Path("toy").mkdir()
    Path("toy/config.json").write_text(json.dumps({"vocab_size": 320}))
    line = f"{shlex.quote(sys.executable)} {FAKE_SERVER}"
    sides = [f"a=X=1 {line}", f"b={line} --differ-at 2", f"c={line}"]
    options = [word for side in sides for word in ("--compare", side)]
    common = ["--model-path", "toy", "--clients", "1", "--output-tokens", "4", "--sample-every", "0"]
    result = CliRunner().invoke(app, ["chat", *SMALL, *options, *common])
    assert result.exit_code == 0, result.output
    assert "Outputs, b and a: different in" in result.output
    assert f"Outputs, c and a: identical in all {REQUESTS} requests" in result.output
    said = report()
    assert [server["name"] for server in said["servers"]] == ["a", "b", "c"]
    assert said["servers"][0]["environment"]["X"] == "1"
    assert said["comparisons"]["b"]["differing"] > said["comparisons"]["c"]["differing"] == 0


def test_lines_and_arguments() -> None:
    options = ServerOptions("model", "cuda", 100, None, 8, None)
    words = ("CUDA_VISIBLE_DEVICES=1", "python", "-m", "sglang.launch_server", "--model", "x=y")
    assert launch.is_whole(words)
    assert not launch.is_whole(words[4:])
    whole = launch.whole("a", options, words)
    assert whole.command == list(words[1:])
    assert whole.environment == NO_PLUGINS | {"CUDA_VISIBLE_DEVICES": "1"}
    assert launch.whole("a", options, (*words, "--radix-cache-backend", "vtensor")).environment == {
        "CUDA_VISIBLE_DEVICES": "1"
    }
    assert parse(["a=--x 'y z'", "b="], ["c=http://host:1/path"]) == (
        Side("a", ("--x", "y z")),
        Side("b"),
        Side("c", url="http://host:1"),
    )


@pytest.fixture
def running() -> Iterator[str]:
    """Address of a server that runs already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(FAKE_SERVER), "--host", "127.0.0.1", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=10)
            break
        except OSError:
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait()


def test_a_server_that_runs_already(running: str) -> None:
    Path("toy").mkdir()
    Path("toy/config.json").write_text(json.dumps({"vocab_size": 320}))
    options = ["--url", f"mine={running}", "--model-path", "toy", "--clients", "1", "--repeats", "2"]
    for _ in range(2):  # it is not stopped, and forgets what it was asked
        result = CliRunner().invoke(app, ["chat", *SMALL, *options])
        assert result.exit_code == 0, result.output
        (server,) = report()["servers"]
        assert (server["url"], server["command"]) == (running, [])
        assert [run["requests"][0]["cached_tokens"] for run in server["runs"]] == [0, 0]
    assert urllib.request.urlopen(f"{running}/health", timeout=10).status == 200


def test_a_url_where_nobody_answers() -> None:
    Path("toy").mkdir()
    Path("toy/config.json").write_text(json.dumps({"vocab_size": 320}))
    result = CliRunner().invoke(app, ["chat", "--url", "mine=http://127.0.0.1:9", "--model-path", "toy"])
    assert result.exit_code == 1
    assert "mine: no SGLang server answers at http://127.0.0.1:9/health" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--compare", "stock"], "--compare: 'stock' is not NAME=ARGUMENTS"),
        (["--compare", "a/b=--x"], "is not NAME=ARGUMENTS"),
        (["--compare", "a=--x 'y"], "--compare: No closing quotation"),
        (["--compare", "a=", "--compare", "a=--x"], "the same name twice"),
        (["--compare", "a=", "--only", "stock"], "--only, --stock-args and --vtensor-args are for"),
        (["--compare", "a=", "--stock-args", "--x"], "--only, --stock-args and --vtensor-args are for"),
        (["--compare", "a=python -m sglang.launch_server"], "need --model-path"),
        (["--url", "a=http://host:1"], "need --model-path"),
        (
            ["--url", "a=http://host:1", "--model-path", "toy", "--server-args=--x"],
            "--server-args would go to no server",
        ),
        (["--url", "http://host:1"], "is not NAME=http://HOST:PORT"),
        (["--url", "a=host:1"], "is not NAME=http://HOST:PORT"),
        (["--repeats", "0"], "'--repeats'"),
    ],
)
def test_bad_usage(options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["chat", *options])
    assert result.exit_code == 2, result.output
    assert reason in result.output
