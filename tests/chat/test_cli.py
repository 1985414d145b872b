# SPDX-License-Identifier: Apache-2.0
"""The command `chat` from its options to its exit status, on fake servers."""

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vt_sglang.chat import run as run_module
from vt_sglang.chat.launch import Launch
from vt_sglang.cli import app

Fake = Callable[..., Launch]

REQUESTS = 11  # four dialogues of three turns, the last of which forks after its first


pytestmark = pytest.mark.usefixtures("here")

Chat = Callable[..., Result]


def report() -> dict[str, Any]:
    return dict(json.loads(Path("report/chat.json").read_text()))


def test_identical(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--vtensor-leaks", "0")])
    assert result.exit_code == 0, result.output
    assert f"Outputs: identical in all {REQUESTS} requests" in result.output
    assert "Leaks: none reported" in result.output
    assert max(map(len, result.output.splitlines())) <= 100
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for line in result.output.splitlines()
        if len(cells := line.split("│")) == 5
    }
    assert rows["requests"] == [str(REQUESTS)] * 2
    for name, value in (
        ("pages created", "1,001"),
        ("pages aliased", "1,002"),
        ("pages mapped", "1,003"),
        ("pages unmapped", "1,004"),
        ("tails extended in place", "2,001"),
        ("tails copied", "2,002"),
    ):
        assert rows[name] == ["-", value]


def test_report(chat: Chat, fake: Fake) -> None:
    servers = [fake("stock"), fake("vtensor", "--vtensor-leaks", "0")]
    assert chat(servers, "--clients", "1").exit_code == 0
    said = report()
    assert said["schema"] == 1
    assert said["exit_status"] == 0
    assert {"date", "command_line", "versions", "machine"} < said.keys()
    assert said["workload"]["planned_requests"] == REQUESTS
    assert said["workload"]["clients"] == 1
    assert said["workload"]["dialogues"]["turns"] == 3
    assert said["comparison"]["first_difference"] is None
    for server, launch in zip(said["servers"], servers, strict=True):
        assert (server["name"], server["command"]) == (launch.name, launch.command)
        assert server["total_tokens"] == 4096
        places = [(request["dialogue"], request["turn"]) for request in server["requests"]]
        assert len(places) == REQUESTS
        assert places == sorted(places)
        for request in server["requests"]:
            assert request["prompt_tokens"] > 40
            assert len(request["output_ids"]) == 4
            assert 0 < request["ttft_ms"] < request["latency_ms"]
        summary = server["summary"]
        assert summary["prompt_tokens"] == sum(request["prompt_tokens"] for request in server["requests"])
        assert summary["cached_tokens"] == sum(request["cached_tokens"] for request in server["requests"]) > 0
    assert said["servers"][0]["vtensor"] is None
    assert said["servers"][1]["vtensor"]["counters"]["pages_created"] == 1001


def test_every_turn_finds_all_before_it_cached(chat: Chat, fake: Fake) -> None:
    """The dialogues are what they should be: each prompt begins with the whole of what its dialogue said before."""
    assert chat([fake("stock")], "--clients", "1").exit_code == 0
    requests = {(r["dialogue"], r["turn"]): r for r in report()["servers"][0]["requests"]}
    for (dialogue, turn), request in requests.items():
        if before := requests.get((dialogue, turn - 1)):
            assert request["cached_tokens"] == before["prompt_tokens"] + 4
    forked = [place for place in requests if place[1] > 0 and (place[0], place[1] - 1) not in requests]
    assert len(forked) == 1
    assert requests[forked[0]]["cached_tokens"] > 40 + 4  # more than the system prompt: the shared turns too


def test_different(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--differ-at", "4")], "--clients", "1", "--forks", "0")
    assert result.exit_code == 1
    # The fifth request is the second turn of the second dialogue; the third turn is asked differently after that.
    assert "Outputs: different in 2 of 12 requests, first in dialogue 1, turn 1, token 2" in result.output
    difference = report()["comparison"]["first_difference"]
    assert (difference["dialogue"], difference["turn"], difference["token"]) == (1, 1, 2)
    assert difference["ids"][1] == 256
    assert report()["exit_status"] == 1


def test_fewer_cached_tokens_are_said_but_are_no_failure(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--forgetful")], "--clients", "1")
    assert result.exit_code == 0
    assert "Cached tokens: vtensor does not have as many as stock in every request" in result.output


def test_failed_request(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--fail-at", "1")], "--clients", "1", "--forks", "0")
    assert result.exit_code == 1
    assert "Failed on vtensor: dialogue 0, turn 1: HTTP status 400" in result.output
    assert "no room today" in result.output
    assert "Not played on vtensor, because of what failed before: 1 of 12 requests" in result.output
    assert report()["servers"][1]["summary"]["failed"] == 1


def test_leak_in_the_log(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--say", "Token pool memory leak detected! 3 of 4")])
    assert result.exit_code == 1
    assert "vtensor: Token pool memory leak detected! 3 of 4" in result.output
    assert report()["servers"][1]["leaks"] == ["Token pool memory leak detected! 3 of 4"]


def test_leak_that_virtual_tensors_report(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--vtensor-leaks", "2")])
    assert result.exit_code == 1
    assert "vtensor: virtual tensors report 2 leaks" in result.output


def test_server_that_dies_on_the_way(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock"), fake("vtensor", "--die-at", "5")], "--clients", "1", "--forks", "0")
    assert result.exit_code == 1
    assert "Failed on vtensor: dialogue 1, turn 2: " in result.output
    assert "Not played on vtensor, because of what failed before: 6 of 12 requests" in result.output
    assert "vtensor: the server ended by itself, with status 7" in result.output


def test_server_that_does_not_start(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock", "--say", "the reason why", "--exit", "3")])
    assert result.exit_code == 1
    assert "the stock server ended with status 3 before it was ready" in result.output
    assert "the reason why" in result.output


def test_turns_that_do_not_fit_are_counted(chat: Chat, fake: Fake) -> None:
    result = chat([fake("stock")], "--context-length", "90", "--forks", "0")
    assert result.exit_code == 0
    lost = report()["workload"]["lost_turns"]
    assert 0 < lost < 12
    assert report()["servers"][0]["summary"]["requests"] == 12 - lost
    assert f"Turns left out because they do not fit the context length: {lost}" in result.output


def test_dialogues_of_a_file_with_its_answers(chat: Chat, fake: Fake) -> None:
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": f"{role} says so"} for role in roles]
    Path("some.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    options = ("--dialogues", "some.jsonl", "--answers", "file", "--output-tokens", "4")
    result = chat([fake("stock")], *options, shape=())
    assert result.exit_code == 0, result.output
    first, second = report()["servers"][0]["requests"]
    grown = len("assistant says so") + len("user says so") + 4  # and four markers
    assert second["prompt_tokens"] == first["prompt_tokens"] + grown
    # The file's answer is not what the server generated, which therefore is of no use to it.
    assert second["cached_tokens"] == first["prompt_tokens"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--answers", "file"], "--answers file needs --dialogues"),
        (["--dialogues", "bad.jsonl"], "line 1: not an object"),
        (["--dialogues", "nowhere.jsonl"], "does not exist"),
        (["--dialogues", "bad.jsonl", "--turns", "9"], "either read (--dialogues) or generated"),
        (["--forks", "1.5"], "'--forks'"),
        (["--clients", "0"], "'--clients'"),
        (["--server-args", "'open"], "No closing quotation"),
        (["--context-length", "40"], "no turn with an answer of 32 tokens fits 40 tokens"),
        (["--max-total-tokens", "40"], "no turn with an answer of 32 tokens fits 40 tokens"),
        (["--report", "bad.jsonl/x.json"], "--report bad.jsonl/x.json: bad.jsonl is no folder"),
        (["--report", "no/such/x.json"], "--report no/such/x.json: there is no folder no/such"),
        (["--num-dialogues", "9" * 400], "more than 1,000,000,000 tokens; generate fewer or shorter ones"),
        (["--system-tokens", "99999999999999"], "more than 1,000,000,000 tokens; generate fewer or shorter ones"),
        (["--only", "neither"], "'--only'"),
    ],
)
def test_bad_usage(options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> list[Launch]:
        raise AssertionError("a server would have been started")

    monkeypatch.setattr(run_module, "chosen_launches", never)
    monkeypatch.setenv("COLUMNS", "200")
    Path("bad.jsonl").write_text("[]\n")
    result = CliRunner().invoke(app, ["chat", *options])
    assert result.exit_code == 2, result.output
    assert reason in result.output


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.machine, "gpus", lambda: run_module.machine.Gpus([], "no CUDA driver"))
    result = CliRunner().invoke(app, ["chat", "--device", "cuda"])
    assert result.exit_code == 2
    assert "no CUDA driver" in result.output


def test_without_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.machine, "installed", lambda _: None)
    result = CliRunner().invoke(app, ["chat"])
    assert result.exit_code == 2
    assert "SGLang is not installed" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_stops_the_servers(fake: Fake, alive: Callable[[int], bool], number: signal.Signals) -> None:
    launch = fake("stock", "--child", "child", "--never-ready")
    program = (
        "import vt_sglang.chat.run as run; from vt_sglang.chat.launch import Launch; from vt_sglang.cli import app\n"
        f"run.chosen_launches = lambda *_: [Launch('stock', {list(launch.command)!r})]\napp()"
    )
    tool = subprocess.Popen(
        [sys.executable, "-c", program, "chat"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Whatever these tests inherited: where SIGHUP is ignored, as under nohup, the command ignores it, too.
        preexec_fn=functools.partial(signal.signal, number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (Path("child").exists() and Path("child").read_text()) and time.monotonic() < deadline:
        assert tool.poll() is None, "it ended before it was interrupted"
        time.sleep(0.05)
    child = int(Path("child").read_text())
    tool.send_signal(number)
    _, said = tool.communicate(timeout=120)
    assert tool.returncode not in (0, -number)
    assert b"Traceback" not in said
    assert not alive(child)


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom vt_sglang.cli import app\n"
        "for command in ([], ['chat'], ['doctor']):\n"
        "    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'sglang', 'transformers', 'numpy', 'aiohttp'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
