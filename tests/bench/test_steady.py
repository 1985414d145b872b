# SPDX-License-Identifier: Apache-2.0
"""`bench/steady.py` on the core: what it plays, what it counts, and what it refuses."""

import json
import random
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
import steady
import steady_causes
import steady_core
import steady_options
import tables
from serve_load import Load
from steady_load import Order, Steady

from vt_sglang._core import DriverError, KVCache

SMALL = ("--clients", "3", "--conversations", "7", "--turns", "3", "--turn-in", "20", "--turn-out", "5")
CACHE = ("--token-bytes", "64", "--page-bytes", "4096", "--guard", "16", "--chunk", "50")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(steady_options.LOADS["again"], "system", 30)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The JSON of a run."""
    monkeypatch.setattr(sys, "argv", ["bench/steady.py", *arguments, "--json", "result.json"])
    steady.main()
    return json.loads(Path("result.json").read_text())


def core(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    return run(monkeypatch, "core", *SMALL, *CACHE, "--check", *arguments)


def load(**changed: Any) -> Steady:
    how = {"conversations": 7, "random_order": False, "passes": 1, "warm": 0, "seed": 0} | changed
    return Steady(Load(3, 4, 11, 6, 5, 2), **how)


# ---- the load


def test_lengths() -> None:
    steady = load()
    assert [steady.prompt_tokens(turn) for turn in range(4)] == [17, 24, 31, 38]
    assert steady.longest_tokens == 40
    assert (steady.requests, steady.working_set_tokens) == (28, 11 + 7 * 29)
    whole = steady.whole(1000, 0, 2)
    assert len(whole) == 40
    assert whole[:11] == array("q", steady.system_prompt(1000))
    said = list(steady.said(1000, 0, 2))
    assert [whole[11:17].tolist(), whole[19:24].tolist()] == said[:2]


def test_passes_share_the_system_prompt_and_nothing_else() -> None:
    steady = load()
    one, other = steady.whole(10**6, 0, 2), steady.whole(10**6, 1, 2)
    assert one[:11] == other[:11]
    assert not {*one[11:]} & {*other[11:]}
    assert one == load().whole(10**6, 0, 2)
    assert one != load(seed=1).whole(10**6, 0, 2)


@pytest.mark.parametrize("random_order", [False, True])
def test_every_turn_of_every_conversation_comes_once(random_order: bool) -> None:
    steady = load(random_order=random_order)
    order = Order(steady, 0)
    at_work = [it for it in (order.first() for _ in range(3)) if it is not None]
    played = []
    while at_work:
        conversation = at_work.pop(0)
        played.append((conversation, order.turn(conversation)))
        following = order.after(conversation)
        assert following not in at_work
        if following is not None:
            at_work.append(following)
    assert len(played) == len({*played}) == steady.requests
    for conversation in range(7):
        assert [turn for it, turn in played if it == conversation] == [0, 1, 2, 3]
    stayed = [one == other for one, other in zip(played, played[3:], strict=False) if one[0] == other[0]]
    if not random_order:
        assert played[:6] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    else:
        assert len(stayed) < steady.requests / 2


# ---- on the core


@pytest.mark.parametrize("name", ["again", "returning"])
@pytest.mark.parametrize("how", [("--driver", "none"), ("--driver", "none", "--map-pages"), ("--driver", "host")])
def test_core(monkeypatch: pytest.MonkeyPatch, name: str, how: tuple[str, ...]) -> None:
    said = core(monkeypatch, "--load", name, *how, "--passes", "3", "--budget", "500", "--forward-us", "10")
    assert (said["schema"], said["kind"], said["case"]) == (1, "steady", "core")
    assert said["command_line"].startswith("python bench/steady.py core --clients 3")
    found = said["results"]["core"]
    assert len(found["passes"]) == 3
    system = 30 if name == "again" else 0
    for it in found["passes"]:
        assert it["requests"] == it["counters"]["binds"] == 21
        assert it["prompt_tokens"] == 7 * (3 * (system + 20) + (1 + 2) * 25)
        assert it["output_tokens"] == 21 * 5
        assert it["cached_tokens"] == it["counters"]["tokens_matched"] > 0
        sums = dict.fromkeys(it["causes"]["all"], 0)
        for operation, made in it["causes"].items():
            calls = [made[cause] for cause in steady_causes.CAUSES]
            assert sum(calls) == made["all"]
            assert min(calls) >= 0
            if operation != "all":
                sums = {cause: number + made[cause] for cause, number in sums.items()}
        assert sums == it["causes"]["all"]
        assert sums["all"] == it["counters"]["driver_calls"]
        binds = [it["microseconds"][name]["calls"] for name in ("bind, new", "bind, next", "bind, last turn")]
        assert binds == [7, 7, 7]
        assert it["usage"]["live_slots"] == 0
        assert (it["counters"]["driver_ns"] > 0) == ("host" in how)
    assert found["passes"][0]["counters"]["pages_created"] > 0
    moved = sum(it["counters"]["pages_moved"] for it in found["passes"])
    assert (moved > 0) == (how == ("--driver", "none"))
    assert ("core: p99 of returning binds, us" in said["results"]["targets"]) == ("host" in how)


def test_the_same_seed_makes_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*arguments: str) -> list[Any]:
        few = ("--order", "random", "--passes", "2", "--warm", "1", "--budget", "400")
        passes = core(monkeypatch, *few, *arguments)["results"]["core"]["passes"]
        return [(it["causes"], it["cached_tokens"], it["steps"]) for it in passes]

    assert counted() == counted()
    assert counted() != counted("--seed", "1")


def test_with_memory_for_all_every_turn_goes_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    (it,) = core(monkeypatch, "--budget", "8000", "--passes", "1", "--warm", "0")["results"]["core"]["passes"]
    # The last token of an answer is recorded by the turn that follows; the first clients compute the system prompt.
    assert it["cached_tokens"] >= 7 * (54 + 79) + 4 * 30
    assert it["counters"]["tails_extended"] >= 14
    assert it["counters"]["nodes_evicted"] == 0


def test_the_table_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    core(monkeypatch, "--load", "returning", "--driver", "host", "--passes", "2", "--budget", "500")
    monkeypatch.setattr(tables, "RESULTS", Path())
    Path("result.json").rename("steady-core.json")
    text = tables._table("steady-core")
    it = json.loads(Path("steady-core.json").read_text())["results"]["core"]["passes"][1]
    assert text.startswith("<!-- steady-core -->\n`python bench/steady.py core --clients 3")
    assert "On the core alone (host driver, 7 pages of 0.00390625 MiB, 6 slots). 7 conversations a pass, 3 at a" in text
    assert (
        f"|  | pass 2 |\n| --- | --- |\n| driver calls per 1,000 tokens | {it['driver_calls_per_1000_tokens']:.4f} |"
        in text
    )
    assert f"| pages mapped | {it['counters']['pages_mapped']:,} |" in text
    assert "| core: driver calls per 1,000 tokens | " in text


def test_calls_that_nobody_made_are_told() -> None:
    cache = KVCache(driver="none", page_bytes=64, token_bytes=16, slots=3, slot_tokens=64, budget_pages=8)
    ledger = steady_causes.Ledger(cache)
    slot = ledger.counted("bind", lambda: cache.bind(None, 0, 5)[0])
    cache.release(slot)
    cache.trim(0)
    causes = ledger.causes()
    assert causes["bind"] | {"other": 0} == causes["bind"]
    assert causes["bind"]["fresh"] == causes["bind"]["created"] == 2
    assert causes[steady_causes.ELSEWHERE]["released"] == 2
    assert causes["all"]["all"] == causes["bind"]["all"] + causes[steady_causes.ELSEWHERE]["all"]


@pytest.mark.parametrize("driver", ["none", "host"])
def test_cold(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    sizes = ("--prefix", "1000", "--turn-in", "30", "--turn-out", "5", "--repeats", "3", "--copy-from", "8")
    said = run(monkeypatch, "cold", "--no-server", "--driver", driver, *sizes, *CACHE[:-2], "--settle", "0.001")
    found = said["results"]["core"]
    assert len(found["cold"]) == len(found["warm"]) == 3
    kinds = ("cold", "copied", "warm") if driver == "none" else ("cold", "warm")  # the host's contents do not move
    assert {f"{kind}_us" for kind in kinds} <= set(found)
    for it in found["cold"]:
        # 64 tokens a page; the 16th is copied, since another request went on in it.
        assert (it["matched_tokens"], it["pages_shared"]) == (1000, 15)
        assert it["causes"]["alias"] == 15
        assert it["pages_mapped"] >= 17
    for it in found["warm"]:
        assert (it["matched_tokens"], it["pages_shared"], it["causes"]["alias"]) == (1000, 15, 0)
        assert it["pages_mapped"] <= 2
    for it in found.get("copied", ()):
        assert (it["matched_tokens"], it["pages_shared"], it["causes"]["copied"]) == (1000, 0, 15)
        assert it["pages_mapped"] <= 3
    for kind in kinds:
        spent = found[f"{kind}_us"]
        assert spent["all"]["sum"] == pytest.approx(sum(spent[part]["sum"] for part in spent if part != "all"))
    assert ("core: cold bind to launch, mapped, p99, ms" in said["results"]["targets"]) == (driver == "host")


def conversations(path: Path) -> None:
    """A trace of token ids: 40 conversations of three turns, one after the other by turns, half of one beginning."""
    drawn = random.Random(5)
    histories = [[1] * 60 if number % 2 else [] for number in range(40)]
    lines = []
    for _ in range(3):
        for history in histories:
            history += [drawn.randrange(10**6) for _ in range(20)]
            output = [drawn.randrange(10**6) for _ in range(drawn.randrange(9))]
            lines.append({"timestamp": len(lines), "input_ids": [*history], "output_ids": output})
            history += output
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    conversations(Path("trace.jsonl"))
    sizes = ("--capacity", "1000,2000,4000,16000", "--clients", "4", "--passes", "2")
    # Small pages: what rounding to pages costs is not the question.
    result = run(monkeypatch, "trace", "trace.jsonl", *sizes, *CACHE, "--page-bytes", "128")["results"]
    assert (result["requests"], len(result["capacities"])) == (120, 4)
    rates = [it["hit_rate"] for it in result["capacities"]]
    ideal = [it["ideal_hit_rate"] for it in result["capacities"]]
    assert rates == pytest.approx(ideal, abs=0.1)  # for what four requests hold, and compute side by side
    assert rates[-1] == pytest.approx(ideal[-1], abs=0.02)
    assert rates[0] < rates[-1]
    for it in result["capacities"]:
        assert len(it["driver_calls_by_pass"]) == 2
        assert it["counters"]["binds"] == it["microseconds"]["bind, any"]["calls"] == 120
        assert steady_causes.ELSEWHERE not in it["causes"]
        assert it["usage"]["live_slots"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing",), "invalid choice: 'nothing'"),
        (("core", "--clients", "0"), "0 is too few"),
        (("core", "--clients", "8", "--load", "returning", "--conversations", "7"), "7 are too few for 8 clients"),
        (("core", "--slots", "8"), "8 are too few for 64 clients"),
        (("core", "--warm", "2", "--passes", "2"), "of 2 passes none would be measured"),
        (("core", "--budget", "many"), "'many' is no capacity"),
        (("core", "--budget", "6000"), "do not hold a conversation of 6,030 tokens"),
        (("core", "--context", "6000"), "a conversation comes to 6,030 tokens"),
        (("core", "--model", "no-model"), "no-model"),
        (("core", "--page-bytes", "some"), "some"),
        (("core", "--json", "/dev/null"), "what is there is no file"),
        (("again", "--device", "cuda"), "no CUDA driver"),
        (("again", "--side", "a=", "--side", "a="), "the same name twice"),
        (("returning", "--model", "nowhere"), "nowhere/config.json"),
        (("trace", "nowhere.jsonl"), "nowhere.jsonl"),
        (("trace", "/dev/null", "--passes", "65"), "at most 64"),
        (("cold", "--settle", "-1"), "is not 0 to 3600 seconds"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = steady_options.machine.Gpus([], "no CUDA driver")
    monkeypatch.setattr(steady_options.machine, "gpus", lambda: nothing)
    with pytest.raises(SystemExit) as ended:
        steady.main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_driver_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: steady_core.Shape) -> KVCache:
        raise DriverError("no memory at all")

    monkeypatch.setattr(steady_core.Shape, "make", fail)
    with pytest.raises(SystemExit, match=r"bench/steady\.py: no memory at all"):
        core(monkeypatch)
    assert not Path("result.json").exists()
