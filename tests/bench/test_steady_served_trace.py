# SPDX-License-Identifier: Apache-2.0
"""`bench/steady.py served-trace`: what is sent and when, what is refused; runs on fake servers and a real one."""

import asyncio
import json
import random
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
import steady
import steady_serve
import steady_served_trace
import steady_servers
import steady_trace_load

from vt_sglang.chat import runs as chat_runs
from vt_sglang.chat.client import Answer, RequestError
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.play import Played, Request
from vt_sglang.replay.work import Work

ROOT = Path(__file__).resolve().parents[2]
FAKE_SERVER = ROOT / "tests/chat/fake_server.py"
TRACE = "trace.jsonl"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat_runs, "IDLE_S", 0.0)


def conversations(count: int = 6, **more: Any) -> None:
    """A Mooncake trace: conversations of three turns, by turns, of one, two and three blocks that begin alike. A
    request every 50 ms."""
    drawn = random.Random(3)
    lines = []
    for turn in range(3):
        for number in range(count):
            ids = [0, *range(10 + 10 * number, 10 + 10 * number + turn)]
            said = {"input_length": 512 * turn + 100, "hash_ids": ids, "output_length": drawn.randrange(5)}
            lines.append({"timestamp": 50 * len(lines) + 1000} | said | more)
    Path(TRACE).write_text("".join(json.dumps(line) + "\n" for line in lines))


# ---- ids


def test_ids_begin_alike_as_units_do_and_go_on_differently() -> None:
    units = array("q", [random.Random(1).randrange(-(2**62), 2**62) for _ in range(3000)])
    other = array("q", units)
    other[1000] += 1
    one, two = (steady_trace_load.spell(it, 50_000, "a") for it in (units, other))
    assert one[:1000] == two[:1000]
    # Also where the units are the same again.
    assert sum(left == right for left, right in zip(one[1000:], two[1000:], strict=True)) <= 3
    assert len(one) == 3000
    assert min(one) >= 0
    assert 49_000 < max(one) < 50_000
    assert len({*one}) > 2850  # 2,912 of 3,000 draws are expected to differ
    assert steady_trace_load.spell(units[:10], 50_000, "a") == one[:10]
    assert not {*steady_trace_load.spell(units, 2**40, "b")} & {*steady_trace_load.spell(units, 2**40, "a")}


def test_units_in_another_order_are_another_prompt() -> None:
    one, two = (steady_trace_load.spell(array("q", it), 2**40, "") for it in ([1, 2, 3, 3], [2, 1, 3, 3]))
    assert not {*one} & {*two}
    assert len({*one}) == 4


def test_works() -> None:
    lines = [
        {"timestamp": 7, "input_ids": [5, 6, 7, 8], "output_ids": [1, 2, 3]},
        {"timestamp": 9, "input_ids": [5, 6, 9], "output_ids": []},
        {"timestamp": 8, "input_ids": [5, 6, 7], "extra_key": "b"},
    ]
    Path(TRACE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorded = steady_trace_load.read(Path(TRACE), None, None)
    works = recorded.works(2**30, 0)
    assert [(it.prompt, it.limit, len(it.units), it.namespace) for it in works] == [
        (4, 3, 6, None),
        (3, 2, 3, None),
        (3, 2, 3, None),
    ]
    assert works[0].units[:2] == works[2].units[:2]
    assert works[0].units[2] != works[2].units[2]
    assert not {*works[0].units} & {*works[1].units}  # of another namespace
    assert works[0].units[4:] == array("q", [-1, -2])
    assert not {*works[0].units[:4]} & {*recorded.works(2**30, 1)[0].units[:4]}
    assert recorded.due_s(2) == [0, 0.5, 1]
    assert (recorded.longest_tokens, recorded.seconds) == (7, 2)
    # Its order is that of arrival.
    first = steady_trace_load.read(Path(TRACE), 2, None)
    assert [it.prompt for it in first.requests] == [4, 3]
    short = steady_trace_load.read(Path(TRACE), None, 4)
    assert (short.skipped, [*short.numbers], short.due_s(1)) == (1, [2, 3], [0, 1])
    with pytest.raises(ValueError, match="--skip-longer 3: all requests have more"):
        steady_trace_load.read(Path(TRACE), None, 3)
    short.refuse_longer(4, "it")
    with pytest.raises(ValueError, match=r"^it: 3 tokens at most, and request 2 of the trace has 3 and 1 of an answer"):
        short.refuse_longer(3, "it")


# ---- the loop


class Slow:
    """A server that takes so long for every answer."""

    def __init__(self, seconds: float, fails: int | None = None) -> None:
        self.asked: list[tuple[list[int], int]] = []
        self.times: list[float] = []
        self.running = self.most = 0
        self._seconds, self._fails = seconds, fails

    async def generate(self, input_ids: list[int], output_tokens: int) -> Answer:
        self.asked.append((input_ids, output_tokens))
        self.times.append(asyncio.get_running_loop().time())
        if len(self.asked) - 1 == self._fails:
            raise RequestError("no room today")
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self._seconds)
        self.running -= 1
        return Answer([0] * output_tokens, len(input_ids), 0)


def some(count: int) -> list[Work]:
    return [Work(array("q", [number, 7, *[-1] * number]), 2, 1, 2, 0.0, None) for number in range(count)]


def play(server: Slow, clients: int, due: list[float] | None) -> Played:
    return asyncio.run(steady_served_trace.play(server, some(9), clients, due))


def test_a_closed_loop_keeps_the_order_of_the_trace() -> None:
    server = Slow(0.01)
    played = play(server, 3, None)
    assert server.asked == [([number, 7], number + 1) for number in range(9)]
    assert server.most == 3
    assert len(played.requests) == 9


def test_an_open_loop_sends_on_time_whatever_runs() -> None:
    server = Slow(0.5)
    due = [0.02 * number for number in range(9)]
    played = play(server, 1, due)
    assert server.asked == [([number, 7], number + 1) for number in range(9)]
    assert server.most == 9
    # Never early; the last one long before the first one ends.
    assert all(it.start_s >= due[it.dialogue] == it.scheduled_s for it in played.requests)
    assert server.times[8] - server.times[0] == pytest.approx(0.16, abs=0.1)


@pytest.mark.parametrize("due", [None, [0.02 * number for number in range(9)]])
def test_after_a_failure_nothing_is_sent(due: list[float] | None) -> None:
    server = Slow(0.001, fails=3)
    played = play(server, 1, due)
    assert len(server.asked) == 4
    assert [it.error for it in played.requests] == [None] * 3 + ["request 4 of those played: no room today"]


def test_how_loaded_a_server_was() -> None:
    def request(start: float, ttft: float, latency: float, error: str | None = None) -> Request:
        return Request(0, 0, Answer(ttft_ms=1e3 * ttft, latency_ms=1e3 * latency), error, start, start)

    # The third begins when the first one ends.
    found = steady_serve.at_work(
        Played([request(0, 1, 4), request(1, 2, 2), request(4, 1, 5), request(1, 1, 3, "no")], 10.0)
    )
    assert found == {"at_server_mean": 1.1, "at_server_most": 2, "before_first_token_mean": 0.4}


# ---- runs


def run(monkeypatch: pytest.MonkeyPatch, servers: dict[str, tuple[str, ...]], *options: str) -> Any:
    """The result of a run on fake servers."""

    def named(name: str, *_: Any) -> Launch:
        return Launch(name, [sys.executable, str(FAKE_SERVER), *servers[name]])

    monkeypatch.setattr(steady_servers.launch, "named", named)
    sides = [word for name in servers for word in ("--side", f"{name}=")]
    arguments = ["served-trace", TRACE, "--device", "cpu", *sides, *options, "--json", "result.json"]
    monkeypatch.setattr(sys, "argv", ["bench/steady.py", *arguments])
    steady.main()
    return json.loads(Path("result.json").read_text())["results"]


@pytest.mark.parametrize("pace", [("--clients", "1"), ("--speed", "2")])
def test_beside_the_ideal(monkeypatch: pytest.MonkeyPatch, pace: tuple[str, ...]) -> None:
    conversations()
    counters = dict.fromkeys(
        ("driver_calls", "pages_mapped", "pages_unmapped", "guards_mapped", "pages_created", "creations_failed"), 0
    )
    counters |= dict.fromkeys(
        ("pages_released", "pages_moved", "pages_copied", "tails_copied", "tokens_aliased", "driver_ns"), 0
    )

    async def state(server: Any) -> dict[str, Any] | None:
        return {"counters": counters, "page_bytes": 4096, "token_bytes": 64} if "v" in server.launch.name else None

    monkeypatch.setattr(steady_serve, "vtensor_state", state)
    found = run(monkeypatch, {"stock": ("--forgetful",), "v": ()}, *pace, "--limit", "17", "--passes", "2")
    closed = pace[0] == "--clients"
    assert (found["clients"], found["speed"]) == ((1, None) if closed else (None, 2))
    trace = found["trace"]
    assert (trace["requests"], trace["skipped"]) == (17, 0)
    assert trace["seconds"] == pytest.approx(0.8)
    assert trace["prompt_tokens"] == 6 * 100 + 6 * 612 + 5 * 1124
    turns = [(it["side"], it["pass"]) for it in found["passes"]]
    assert turns == [("stock", 0), ("stock", 1), ("v", 0), ("v", 1)]
    for it in found["passes"]:
        assert (it["requests"], it["failed"], it["prompt_tokens"]) == (17, 0, trace["prompt_tokens"])
        assert it["output_tokens"] == trace["output_tokens"]
        if not closed:
            assert it["seconds"] >= 0.4
            # Of each request, the time to its first token begins when it was due, and holds how late it was sent.
            assert it["ttft_p99_ms"] >= it["late_p99_ms"] >= 0
    stock, vtensor = found["servers"]["stock"], found["servers"]["v"]
    assert (stock["hit_rate"], stock["of_ideal"]) == (0, 0)
    assert stock["ideal_hit_rate"] == vtensor["ideal_hit_rate"] > 0.2
    assert (stock["total_tokens"], stock["pass"]) == (4096, 1)
    if closed:  # a fake server forgets nothing; ids of a pass and of another begin alike only by chance
        cached = 5 * 99 + 100 + 5 * 512 + 5 * 612
        assert all(cached <= it["cached_tokens"] <= cached + 20 for it in found["passes"][2:])
    assert vtensor["of_ideal"] == pytest.approx(vtensor["hit_rate"] / vtensor["ideal_hit_rate"])
    (target,) = found["targets"].items()
    assert target[0] == "v: cached share at 4,096 tokens, from the ideal one"
    assert target[1]["measured"] == pytest.approx(abs(vtensor["hit_rate"] - vtensor["ideal_hit_rate"]))
    assert found["core"]["cache"]["budget_pages"] == found["core"]["pages"] > 0
    assert len(found["core"]["driver_calls_by_pass"]) == 2
    assert found["core"]["counters"]["binds"] == 17
    assert found["drivers"]["v"]["driver_calls_per_1000_tokens"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fail-at", "3"), "a: request 4 of those played: HTTP status 400"),
        (("--vtensor-leaks", "2"), "virtual tensors report 2 leaks"),
        (("--exit", "3"), "the a server ended with status 3"),
    ],
)
def test_what_goes_wrong_is_told(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str) -> None:
    conversations()
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, {"a": options}, "--clients", "1", "--no-core")
    assert says in str(ended.value.code)
    assert not Path("result.json").exists()


def test_a_request_that_a_server_has_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(TRACE).write_text(json.dumps({"input_length": 4200, "hash_ids": list(range(9)), "output_length": 3}))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, {"a": ()}, "--no-core", "--budget", "9000")
    assert "a's memory: 4,088 tokens at most, and request 1 of the trace has 4,200 and 3" in str(ended.value.code)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--clients", "2", "--speed", "2"), "not allowed with argument --clients"),
        (("--speed", "0"), "'0' is not a factor above 0"),
        (("--speed", "nan"), "'nan' is not a factor above 0"),
        (("--clients", "4", "--slots", "3"), "3 are too few for 4 clients"),
        (("--passes", "65"), "at most 64"),
        (("--limit", "0"), "0 is too few"),
        (("--skip-longer", "99"), "all requests have more tokens"),
        (("--context", "1000"), "--context: 1,000 tokens at most, and request 13 of the trace has 1,124"),
        (("--budget", "1000"), "vtensor: --max-total-tokens 1000, less 8: 992 tokens at most, and request 13"),
        (("--server-args=--max-total-tokens=900",), "vtensor: --max-total-tokens 900, less 8: 892 tokens"),
        (("--side", "a=--context-length 700"), "a: --context-length 700, less 8: 692 tokens at most"),
        (("--side", "a=", "--side", "a="), "the same name twice"),
        (("--model", "nowhere"), "nowhere"),
        (("--no-server",), "unrecognized arguments: --no-server"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations()
    with pytest.raises(SystemExit) as ended:
        steady.main(["served-trace", TRACE, "--device", "cpu", *arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_trace_without_times_has_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    conversations(timestamp=None)
    with pytest.raises(SystemExit):
        steady.main(["served-trace", TRACE, "--speed", "2"])
    assert "does not say when requests arrived" in capsys.readouterr().err


@pytest.mark.slow
def test_with_a_real_server(tmp_path: Path) -> None:
    conversations(4)
    options = ["--speed", "2", "--budget", "3000", "--device", "cpu", "--skip-longer", "1000", "--timeout", "300"]
    options += ["--logs", "logs", "--json", "result.json"]
    command = [sys.executable, str(ROOT / "bench/steady.py"), "served-trace", TRACE, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    said = json.loads(Path("result.json").read_text())
    assert '"/' not in json.dumps(said)
    assert (said["schema"], said["kind"], said["case"]) == (1, "steady", "served-trace")
    found = said["results"]
    assert (found["trace"]["requests"], found["trace"]["skipped"]) == (8, 4)
    it = found["servers"]["vtensor"]
    assert it["cached_tokens"] == it["counters"]["tokens_matched"] > 0
    assert it["prompt_tokens"] == found["trace"]["prompt_tokens"] == 4 * 100 + 4 * 612
    assert it["output_tokens"] == found["trace"]["output_tokens"]
    assert it["total_tokens"] <= 3000
    assert it["hit_rate"] <= it["ideal_hit_rate"] + 0.01
    assert found["core"]["clients"] >= 1
    assert found["starts"][0]["vtensor"]["leaks"] == 0
