# SPDX-License-Identifier: Apache-2.0
"""Loads, limits and the search for the highest load, from options to the report, on fake servers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vt_sglang.chat.launch import Launch
from vt_sglang.cli import app

pytestmark = pytest.mark.usefixtures("here")

SMALL = ("--num-dialogues", "6", "--turns", "2", "--system-tokens", "20", "--user-tokens", "8", "--forks", "0")

Fake = Callable[..., Launch]
Chat = Callable[..., Result]


def report() -> dict[str, Any]:
    return dict(json.loads(Path("report/chat.json").read_text()))


def test_every_server_gets_the_same_arrivals(chat: Chat, fake: Fake) -> None:
    options = ("--rate", "40", "--think-time", "0.02", "--ttft-limit-ms", "60000", "--output-tokens", "4")
    result = chat([fake("a"), fake("b")], *options, shape=SMALL)
    assert result.exit_code == 0, result.output
    assert "Generator on a: late by p50" in result.output
    said = report()
    assert said["workload"]["load"]["rate"] == 40
    assert said["workload"]["clients"] is None
    firsts = [[it["scheduled_s"] for it in server["requests"] if it["turn"] == 0] for server in said["servers"]]
    assert firsts[0] == firsts[1] == sorted(firsts[0])
    assert firsts[0][0] > 0
    for server in said["servers"]:
        for request in server["requests"]:
            assert request["wait_ms"] == pytest.approx((request["start_s"] - request["scheduled_s"]) * 1e3, abs=0.01)
            assert request["ttft_ms"] > request["wait_ms"] >= request["late_ms"] >= 0
        summary = server["summary"]
        assert summary["within_limits"] == summary["requests"] == 12
        assert summary["goodput_per_s"] == pytest.approx(summary["requests_per_s"])
        assert [part["turn"] for part in server["by_turn"]] == [0, 1]
        assert sum(part["requests"] for part in server["by_cached_share"]) == 12
        assert server["by_turn"][1]["hit_rate"] > server["by_turn"][0]["hit_rate"]


def test_requests_a_second_are_conversations_times_their_turns(chat: Chat, fake: Fake) -> None:
    def last_arrival(*options: str) -> float:
        assert chat([fake("a")], "--output-tokens", "2", *options, shape=SMALL).exit_code == 0
        return max(float(it["scheduled_s"]) for it in report()["servers"][0]["requests"] if it["turn"] == 0)

    assert last_arrival("--rate", "80", "--rate-of", "requests") == pytest.approx(
        last_arrival("--rate", "40"), abs=1e-5
    )


def test_dialogues_arrive_at_their_own_times(chat: Chat, fake: Fake) -> None:
    said = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "yes"}, {"from": "human", "value": "why"}]
    entries = [{"conversations": said, "timestamp": time} for time in (1200, 1000, 1100)]
    Path("some.json").write_text(json.dumps(entries))
    options = ("--dialogues", "some.json", "--arrivals", "some.json", "--time-scale", "2", "--output-tokens", "2")
    result = chat([fake("a")], *options, shape=())
    assert result.exit_code == 0, result.output
    requests = report()["servers"][0]["requests"]
    assert [it["scheduled_s"] for it in requests if it["turn"] == 0] == pytest.approx([0.1, 0.0, 0.05])
    assert len(requests) == 6


def test_entries_that_are_no_dialogues_can_be_left_out(chat: Chat, fake: Fake) -> None:
    lines = ["[]", json.dumps({"conversations": [{"from": "human", "value": "hello"}]}), "{}"]
    Path("some.jsonl").write_text("\n".join(lines))
    result = chat([fake("a")], "--dialogues", "some.jsonl", "--skip-bad", shape=())
    assert result.exit_code == 0, result.output
    assert "1 dialogues (2 entries of the file skipped)" in result.output
    assert report()["workload"]["skipped"] == 2


def test_shared_prompts_and_tools(chat: Chat, fake: Fake) -> None:
    options = ("--system-prompts", "2", "--tool-tokens", "200", "--tool-share", "1", "--clients", "1")
    assert chat([fake("a")], *options, shape=SMALL).exit_code == 0
    firsts = [it for it in report()["servers"][0]["requests"] if it["turn"] == 0]
    assert all(it["prompt_tokens"] > 20 + 100 for it in firsts)
    # Dialogues have the two prompts by turns: the third finds the first one's again.
    assert [it["cached_tokens"] >= 20 for it in firsts] == [False, False, True, True, True, True]


def test_the_highest_number_of_clients_is_found(chat: Chat, fake: Fake) -> None:
    """The fake server is slow as soon as four requests are there at once."""
    options = ("--saturate", "--ttft-limit-ms", "250", "--limit-percentile", "100", "--probe-requests", "4")
    shape = ("--num-dialogues", "4", "--turns", "1", "--system-tokens", "8", "--user-tokens", "8", "--forks", "0")
    result = chat([fake("a", "--slow-above", "3")], *options, "--clients", "2", "--output-tokens", "2", shape=shape)
    assert result.exit_code == 0, result.output
    server = report()["servers"][0]
    search = server["saturation"]
    assert (search["highest"], search["lowest_failed"], search["ended"]) == (3, 4, "tolerance")
    failed = [probe for probe in search["probes"] if not probe["passed"]]
    assert [(probe["load"], probe["attempt"]) for probe in failed] == [(4, 0), (4, 1)]
    assert failed[0]["reasons"][0].startswith("TTFT p100 ")
    assert failed[0]["figures"]["summary"]["requests"] == 16  # four dialogues a client
    best = next(probe for probe in search["probes"] if probe["passed"] and probe["load"] == 3)
    assert server["summary"]["ttft_p99_ms"] == pytest.approx(best["figures"]["summary"]["ttft_p99_ms"])
    assert "highest load, clients" in result.output


def test_a_rate_is_searched(chat: Chat, fake: Fake) -> None:
    options = ("--saturate", "--rate", "50", "--ttft-limit-ms", "60000", "--probe-seconds", "0.2", "--max-probes", "2")
    result = chat([fake("a")], *options, "--probe-requests", "4", "--output-tokens", "2", shape=SMALL)
    assert result.exit_code == 0, result.output
    search = report()["servers"][0]["saturation"]
    assert ([probe["load"] for probe in search["probes"]], search["ended"]) == ([50, 100], "never failed")
    assert search["probes"][1]["figures"]["summary"]["requests"] == 2 * 20
    assert "highest load, conversations/s" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--rate", "1", "--arrivals", "times"], "either drawn (--rate) or read (--arrivals)"),
        (["--rate", "1", "--clients", "3"], "--clients is for a closed loop"),
        (["--max-in-flight", "3"], "--max-in-flight needs"),
        (["--time-scale", "3"], "--time-scale needs --arrivals"),
        (["--rate-of", "requests"], "--rate-of needs --rate"),
        (["--think", "constant"], "--think needs --think-time"),
        (["--rate", "inf"], "finite numbers"),
        (["--think-time", "inf"], "finite numbers"),
        (["--arrivals", "times"], "times: 1 timestamps for 24 dialogues"),
        (["--dialogues", "times", "--arrivals", "times", "--skip-bad"], "would mix up the timestamps"),
        (["--skip-bad"], "--skip-bad needs --dialogues"),
        (["--system-prompts", "2", "--system-tokens", "0"], "--system-prompts needs --system-tokens"),
        (["--tool-share", "0.5"], "--tool-share needs --tool-tokens"),
        (["--saturate"], "--saturate needs --ttft-limit-ms or --itl-limit-ms"),
        (["--saturate", "--ttft-limit-ms", "9", "--repeats", "2"], "leave --repeats out"),
        (["--saturate", "--ttft-limit-ms", "9", "--arrivals", "times"], "not --arrivals"),
        (["--max-probes", "9"], "need --saturate"),
    ],
)
def test_bad_usage(options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Path("times").write_text('{"timestamp": 1}\n')
    result = CliRunner().invoke(app, ["chat", *options])
    assert result.exit_code == 2, result.output
    assert reason in result.output
