# SPDX-License-Identifier: Apache-2.0
"""`bench/steady.py` on servers: on fake ones, and once with a real one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import steady
import steady_serve
import steady_servers

from vt_sglang.chat import runs as chat_runs
from vt_sglang.chat.launch import Launch

ROOT = Path(__file__).resolve().parents[2]
FAKE_SERVER = ROOT / "tests/chat/fake_server.py"

SHAPE = ("--clients", "3", "--conversations", "5", "--turns", "2", "--turn-in", "12", "--turn-out", "4")
SMALL = (*SHAPE, "--system", "10", "--budget", "300", "--device", "cpu", "--passes", "3", "--warm", "1")

Bench = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat_runs, "IDLE_S", 0.0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run a case on fake servers; its result."""

    def run(case: str, servers: dict[str, tuple[str, ...]], *options: str) -> Any:
        def named(name: str, *_: Any) -> Launch:
            return Launch(name, [sys.executable, str(FAKE_SERVER), *servers[name]])

        monkeypatch.setattr(steady_servers.launch, "named", named)
        sides = [word for name in servers for word in ("--side", f"{name}=")]
        monkeypatch.setattr(sys, "argv", ["bench/steady.py", case, *sides, *options, "--json", "result.json"])
        steady.main()
        return json.loads(Path("result.json").read_text())["results"]

    return run


@pytest.mark.parametrize("together", [True, False])
def test_passes(bench: Bench, monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    counters = dict.fromkeys(
        ("driver_calls", "pages_mapped", "pages_unmapped", "guards_mapped", "pages_created", "creations_failed"), 0
    )
    counters |= dict.fromkeys(
        ("pages_released", "pages_moved", "pages_copied", "tails_copied", "tokens_aliased", "driver_ns"), 0
    )
    asked: list[str] = []

    async def state(server: Any) -> dict[str, Any] | None:
        """A driver that makes four calls of a millisecond a pass."""
        if server.launch.name == "stock":
            return None
        asked.append(server.launch.name)
        passes = len(asked) // 2
        now = counters | {"driver_calls": 4 * passes, "pages_mapped": 4 * passes, "driver_ns": 4_000_000 * passes}
        return {"counters": now, "page_bytes": 4096, "token_bytes": 64}

    monkeypatch.setattr(steady_serve, "vtensor_state", state)
    how = ("--together",) if together else ()
    result = bench("returning", {"stock": (), "vtensor": ()}, *SMALL, *how, "--page-bytes", "4096")
    turns = [(it["side"], it["pass"]) for it in result["passes"]]
    if together:
        assert turns == [(side, number) for number in range(3) for side in ("stock", "vtensor")]
    else:
        assert turns == [(side, number) for side in ("stock", "vtensor") for number in range(3)]
    tokens = 5 * ((10 + 12 + 4) + (10 + 12 + 4 + 12 + 4))
    for it in result["passes"]:
        assert (it["requests"], it["failed"], it["errors"]) == (10, 0, [])
        assert it["prompt_tokens"] + it["output_tokens"] == tokens
        # A fake server forgets nothing: a second turn finds the first, and all find the system prompt.
        assert it["cached_tokens"] >= 5 * (10 + 12 + 4) + (5 - 3) * 10
        if it["side"] == "vtensor":
            assert it["driver_calls_per_1000_tokens"] == pytest.approx(4000 / tokens)
            assert it["shares"] == {"driver_ns": pytest.approx(0.004 / it["seconds"])}
            assert (it["causes"]["fresh"], it["causes"]["all"]) == (4, 4)
    assert result["rows"][0]["sides"]["stock"]["runs"] == 2
    assert result["drivers"].keys() == {"vtensor"}
    assert result["drivers"]["vtensor"]["counters"]["driver_calls"] == 8
    targets = result["targets"]
    assert not targets["vtensor: driver calls per 1,000 tokens"]["reached"]
    measured = [it for it in result["passes"] if it["side"] == "vtensor"][1:]
    share = max(it["shares"]["driver_ns"] for it in measured)
    assert targets["vtensor: scheduler's time in or waiting for the driver"]["measured"] == share
    assert len(result["core"]["passes"]) == 3


def test_the_scheduler_waits_where_the_core_counts_that() -> None:
    one = {"driver_calls_per_1000_tokens": 1.0, "pages_moved_per_1000_tokens": 0.0, "causes": {"all": 2}}
    passes = [
        one | {"counters": {"driver_ns": 9, "driver_wait_ns": 3}, "shares": {"driver_ns": 0.9, "driver_wait_ns": 0.3}},
        one | {"counters": {"driver_ns": 9, "driver_wait_ns": 4}, "shares": {"driver_ns": 0.9, "driver_wait_ns": 0.4}},
    ]
    found = steady_serve.drivers(passes)
    assert (found["share"], found["share_of"]) == (0.4, ["driver_wait_ns"])
    assert found["counters"] == {"driver_ns": 18, "driver_wait_ns": 7}
    assert found["causes"] == {"all": 4}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fail-at", "3"), "a: HTTP status 400"),
        (("--vtensor-leaks", "2"), "virtual tensors report 2 leaks"),
        (("--exit", "3"), "the a server ended with status 3"),
    ],
)
def test_what_goes_wrong_is_told(bench: Bench, options: tuple[str, ...], says: str) -> None:
    with pytest.raises(SystemExit) as ended:
        bench("again", {"a": options}, *SMALL, "--no-core")
    assert says in str(ended.value.code)
    assert not Path("result.json").exists()


def test_a_cold_round_whose_other_request_is_too_short_is_no_round(bench: Bench) -> None:
    sizes = ("--prefix", "30", "--turn-in", "4", "--turn-out", "2", "--device", "cpu", "--no-core")
    with pytest.raises(SystemExit, match="give more --turn-out"):
        bench("cold", {"a": ()}, *sizes)


@pytest.mark.slow
def test_with_a_real_server(tmp_path: Path) -> None:
    options = [*SMALL, "--no-core", "--logs", str(tmp_path), "--json", str(tmp_path / "steady.json")]
    command = [sys.executable, str(ROOT / "bench/steady.py"), "again", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    said = json.loads((tmp_path / "steady.json").read_text())
    assert '"/' not in json.dumps(said)
    assert (said["schema"], said["kind"], said["case"]) == (1, "steady", "again")
    result = said["results"]
    for it in result["passes"]:
        assert (it["requests"], it["failed"], it["counters"]["binds"]) == (10, 0, 10)
        assert it["cached_tokens"] == it["counters"]["tokens_matched"]
        assert it["causes"]["all"] == it["counters"]["driver_calls"]
    assert result["passes"][0]["counters"]["pages_created"] > 0
    assert result["starts"][0]["vtensor"]["leaks"] == 0
