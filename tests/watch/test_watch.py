# SPDX-License-Identifier: Apache-2.0
"""The command, on a fake server."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from fake_metrics import STOCK_METRICS, FakeServer, info, vtensor_info, vtensor_metrics
from rich.console import Console
from typer.testing import CliRunner, Result

from vt_sglang.cli import app
from vt_sglang.watch.reader import Reader
from vt_sglang.watch.run import watch_live
from vt_sglang.watch.source import AddressError, NoAnswerError, Source, normalized


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["watch", *arguments])


def run_json(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--once", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_once_prints_a_screen(server: FakeServer) -> None:
    server.answers = {"/metrics": vtensor_metrics(), "/server_info": vtensor_info()}
    result = run(server.url, "--once")
    assert result.exit_code == 0
    text = re.sub(r"\s+", " ", result.stdout)
    for part in (
        "toy SGLang 0.5.17",
        "running 3",
        "queued 2",
        "hit rate over all 15.5%",
        "adopted 100 (65%)",
        "pinned 10 pages, 10.00 MiB",
        "withheld 1 pages, 1.00 MiB",
        "budget 100 pages, 100.00 MiB",
        "driver calls 1,000",
        "tokens evicted 30",
        "4,096 8 0-512 ab12cd34 9, 8, 7",
    ):
        assert part in text
    assert "Note" not in text


def test_once_prints_json(server: FakeServer) -> None:
    server.answers = {"/metrics": vtensor_metrics(), "/server_info": vtensor_info()}
    found = run_json(server.url)
    assert (found["schema"], found["kind"], found["url"]) == (1, "watch", server.url)
    assert (found["metrics"], found["vtensor"], found["notes"]) == (True, True, [])
    assert found["hit_rate"] == pytest.approx(0.155)
    assert found["hit_rate_now"] is None
    assert found["pages"]["not_created"] == 39
    assert found["busiest"][0]["saved_tokens"] == 4096


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"/server_info": vtensor_info()}, "--enable-metrics"),
        ({"/metrics": STOCK_METRICS, "/server_info": info(None)}, "--radix-cache-backend vtensor"),
        ({"/metrics": vtensor_metrics()}, "no /server_info"),
    ],
)
def test_what_is_missing_is_said(server: FakeServer, answers: dict[str, Any], words: str) -> None:
    server.answers = answers
    result = run(server.url, "--once")
    assert result.exit_code == 0
    assert words in re.sub(r"\s+", " ", result.stdout)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "is this an SGLang server?"),
        ({"/metrics": 500}, "status 500"),
        ({"/metrics": 302, "/elsewhere": vtensor_metrics()}, "status 302"),
        ({"/metrics": 401}, "--api-key"),
        ({"/metrics": "a{b 1\n"}, "Prometheus"),
        ({"/server_info": "<html>"}, "not JSON"),
        ({"/server_info": '{"internal_states": [{"vtensor": {"usage": 7}}]}'}, "not what this version"),
        ({"/server_info": '{"internal_states": [{"vtensor": {"pages": "many"}}]}'}, "not what this version"),
    ],
)
def test_no_such_server_is_an_error(server: FakeServer, answers: dict[str, Any], words: str) -> None:
    server.answers = answers
    result = run(server.url, "--once")
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "/elsewhere" not in server.asked


def test_a_server_that_is_not_there_is_an_error(server: FakeServer) -> None:
    server.stop()
    result = run(server.url, "--once", "--json")
    assert result.exit_code == 1
    assert "no server answers" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("http://127.0.0.1:1", "--events", "tcp://127.0.0.1:1"),
        ("http://127.0.0.1:1", "--replay", "tcp://127.0.0.1:1"),
        ("http://127.0.0.1:1", "--json"),
        ("--events", "tcp://127.0.0.1:1", "--once"),
        ("ftp://127.0.0.1",),
        ("http://",),
        ("127.0.0.1:port",),
        ("http://127.0.0.1:1", "--interval", "0"),
        ("http://127.0.0.1:1", "--interval", "inf"),
        ("http://127.0.0.1:1", "--interval", "1e300"),
        ("http://127.0.0.1:1/ä", "--once"),
        ("http://127.0.0.1:1", "--once", "--api-key", "secret\n"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert "secret" not in result.output


def test_addresses() -> None:
    assert normalized("127.0.0.1:30000") == "http://127.0.0.1:30000"
    assert normalized("http://host:1/metrics") == "http://host:1"
    assert normalized("https://host/behind/a/proxy/") == "https://host/behind/a/proxy"
    assert normalized("http://[::1]:5/server_info") == "http://[::1]:5"
    for wrong in (
        "",
        "http://",
        "ftp://host",
        "http://host:x",
        "http://host?a=b",
        "http://host/ä",
        "http://host/a b",
        "a" * 70,
    ):
        with pytest.raises(AddressError):
            normalized(wrong)


def test_the_key_is_sent_and_not_shown(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = {"/metrics": vtensor_metrics(), "/server_info": vtensor_info()}
    monkeypatch.setattr(sys, "argv", ["vt-sglang", "watch", server.url, "--api-key", "swordfish"])
    result = run(server.url, "--once", "--json", "--api-key", "swordfish")
    assert set(server.keys) == {"Bearer swordfish"}
    assert result.exit_code == 0
    assert "swordfish" not in result.output


def test_no_proxy_of_the_environment_is_asked(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = {"/server_info": vtensor_info()}
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Reader(Source(server.url)).read().has_vtensor


def test_server_info_is_asked_rarely_where_metrics_answer(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = {"/metrics": vtensor_metrics(), "/server_info": vtensor_info()}
    now = 100.0
    monkeypatch.setattr("vt_sglang.watch.reader.time.monotonic", lambda: now)
    reader = Reader(Source(server.url))
    for _ in range(4):
        assert reader.read().busiest is not None
        now += 2
    assert server.asked.count("/metrics") == 4
    assert server.asked.count("/server_info") == 2


def test_a_server_that_goes_away_is_waited_for(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up, gone, up again: the last figures stay, the reason is told, and the gap makes no rate."""
    server.answers = {"/metrics": vtensor_metrics(prompts=1000), "/server_info": vtensor_info()}
    looks = 0
    real = Source.metrics

    def metrics(source: Source) -> str | None:
        nonlocal looks
        looks += 1
        server.answers["/metrics"] = vtensor_metrics(prompts=1000 * looks)
        if looks == 3:
            raise NoAnswerError("no server answers: it is away")
        return real(source)

    monkeypatch.setattr(Source, "metrics", metrics)
    output = io.StringIO()
    assert watch_live(Source(server.url), 0.01, Console(file=output, width=100), looks=5) == 0
    screens = output.getvalue().split(server.url)[1:]
    assert len(screens) == 5
    assert [("it is away" in it) for it in screens] == [False, False, True, False, False]
    assert "below is what it said last" in screens[2]
    assert "prompt tokens                            2,000" in screens[2]
    rates = [
        next(line.split("││")[0].split()[-1] for line in it.splitlines() if "prompt tokens/s" in line) for it in screens
    ]
    assert rates[0] == rates[3] == "-"
    assert "-" not in (rates[1], rates[4])


def test_in_a_terminal_until_ctrl_c(server: FakeServer) -> None:
    """A terminal of its own: screens are drawn, Ctrl-C ends it with status 0, and the last one stays."""
    server.answers = {"/metrics": vtensor_metrics(), "/server_info": vtensor_info()}
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vt_sglang", "watch", server.url, "--interval", "0.1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = _read(ours, lambda text: len(server.asked) > 6 and "pinned" in text)
        os.kill(process.pid, signal.SIGINT)
        rest = _read(ours, lambda _: process.poll() is not None)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        os.close(ours)
    assert "hit rate over all" in shown
    assert "Traceback" not in shown + rest
    assert "\x1b[?1049l" in rest  # back from the alternate screen
    assert "hit rate over all" in rest.split("\x1b[?1049l")[-1]


def _read(terminal: int, enough: Any) -> str:
    text, deadline = "", time.monotonic() + 30
    while not enough(text) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # its other end is closed
                break
    return text
