# SPDX-License-Identifier: Apache-2.0
"""`bench/serve.py` from its options to its result, on fake servers; and once with real ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serve
import tables
from common import short

from vt_sglang.chat import runs as chat_runs
from vt_sglang.chat import toy_model
from vt_sglang.chat.launch import NO_PLUGINS, Launch
from vt_sglang.replay import sizes

ROOT = Path(__file__).resolve().parents[2]
FAKE_SERVER = ROOT / "tests/chat/fake_server.py"

CLIENTS, TURNS, OUTPUT = 3, 2, 4
SMALL = ("--clients", "3", "--turns", "2", "--first", "12", "--next", "5", "--output", "4", "--device", "cpu")

Bench = Callable[..., tuple[dict[str, Any], int | str | None]]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat_runs, "IDLE_S", 0.0)


def fake(name: str, *options: str) -> Launch:
    return Launch(name, [sys.executable, str(FAKE_SERVER), *options])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run the benchmark on these servers; its result, and its exit status or message."""

    def run(servers: list[Launch], *options: str) -> tuple[dict[str, Any], int | str | None]:
        given = {server.name: server for server in servers}
        monkeypatch.setattr(serve.launch, "named", lambda name, *_: given[name])
        sides = [word for name in given for word in ("--side", f"{name}=")]
        monkeypatch.setattr(sys, "argv", ["bench/serve.py", *SMALL, *sides, "--json", "result.json", *options])
        status: int | str | None = 0
        try:
            serve.main()
        except SystemExit as ended:
            status = ended.code
        return json.loads(Path("result.json").read_text()), status

    return run


@pytest.mark.parametrize("together", [True, False])
def test_runs(bench: Bench, together: bool) -> None:
    servers = [fake("stock"), fake("vtensor", "--vtensor-leaks", "0")]
    loads = ("--system-prompt", "0", "--system-prompt", "20")
    how = ("--repeats", "2", "--runs-per-start", "2", *(("--together",) if together else ()))
    said, status = bench(servers, *loads, *how)
    assert status == 0
    result = said["results"]
    runs = [(it["repeat"], it["load"], it["run"], it["side"]) for it in result["runs"]]
    names = ["sharing nothing", "sharing a system prompt of 20 tokens"]
    if together:
        order = [(a, b, c, d) for a in range(2) for b in names for c in range(2) for d in ("stock", "vtensor")]
    else:
        order = [(a, b, c, d) for a in range(2) for d in ("stock", "vtensor") for b in names for c in range(2)]
    assert runs == order
    for run in result["runs"]:
        assert (run["requests"], run["failed"], run["errors"]) == (CLIENTS * TURNS, 0, [])
        assert run["output_tokens"] == CLIENTS * TURNS * OUTPUT
        assert run["requests_per_s"] == pytest.approx(CLIENTS * TURNS / run["seconds"])
        assert run["output_tokens_per_s"] == pytest.approx(CLIENTS * TURNS * OUTPUT / run["seconds"])
        # From an empty cache: a second turn finds the first one's 12 + 4 tokens, and the system prompt before them.
        system = 20 if run["load"] == names[1] else 0
        assert run["prompt_tokens"] == CLIENTS * (2 * (system + 12) + 4 + 5)
        assert run["cached_tokens"] >= CLIENTS * (system + 12 + 4)
        if not system:
            assert run["cached_tokens"] <= CLIENTS * (12 + 4) + CLIENTS
    assert [(it["repeat"], it["side"]) for it in result["starts"]] == [
        (a, b) for a in range(2) for b in ("stock", "vtensor")
    ]
    for start in result["starts"]:
        assert start["start_s"] > 0
        assert start["leaks"] == []
        assert 0 < start["idle_bytes"] <= start["peak_bytes"]
        assert start["after_bytes"] > 0
        assert start["kv_idle_bytes"] is None  # the fake server does not tell
    assert [load["name"] for load in result["loads"]] == names
    assert all(load["reached"].keys() == {"vtensor"} for load in result["loads"])
    assert result["error"] is None
    assert result["sides"][0]["command"] == [Path(sys.executable).name, "fake_server.py"]
    assert said["command"].startswith("python bench/serve.py --clients 3")
    assert '"/' not in json.dumps(said)


def test_runs_of_a_server_are_different_and_those_of_two_are_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []
    play = serve.measure.__globals__["play"]

    async def spy(scripts: Any, *arguments: Any, **options: Any) -> Any:
        played.append(scripts)
        return await play(scripts, *arguments, **options)

    monkeypatch.setitem(serve.measure.__globals__, "play", spy)
    bench([fake("a"), fake("b")], "--together", "--repeats", "1", "--runs-per-start", "2")
    assert played[0::2] == played[1::2]
    assert len({repr(scripts) for scripts in played}) == 3  # a warm-up and two runs


def test_the_table_of_the_documents(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    said, _ = bench([fake("stock"), fake("vtensor")], "--together", "--repeats", "1", "--runs-per-start", "2")
    Path("results").mkdir()
    Path("results/serve.json").write_text(json.dumps(said))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "RESULTS", Path("results"))
        text = tables._table("serve")
    assert text.startswith("<!-- serve -->\n`python bench/serve.py")
    assert text.endswith("<!-- end -->")
    assert "Medians of 2 runs (lowest to highest), servers side by side, at work by turns." in text
    assert "3 conversations sharing nothing: 2 turns of 12 and then 5 tokens, answers of 4:" in text
    assert "|  | stock | vtensor | vtensor / stock | vtensor is |\n| --- | --- | --- | --- | --- |\n" in text
    row = said["results"]["loads"][0]["rows"][0]
    stock, beside = row["sides"]["stock"], row["beside"]["vtensor"]
    assert f"| output tokens/s | {stock['median']:,.1f} ({stock['low']:,.1f} to {stock['high']:,.1f}) | " in text
    assert f" | {beside['ratio']:.3f} | {beside['verdict']} |\n| requests/s |" in text
    printed = capsys.readouterr().out
    assert f"{beside['ratio']:.3f}" in printed
    assert "vtensor at least equal in output tokens/s and TTFT p50: " in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fail-at", "3"), "b, warm-up: HTTP status 400"),
        (("--fail-at", "9"), "b, sharing nothing: HTTP status 400"),
        (("--die-at", "9"), "b, sharing nothing: "),
        (("--never-flush",), "b: the cache could not be flushed"),
        (("--keep-cache",), "b: 11 tokens of a prompt outlived a flush"),
        (("--vtensor-leaks", "2"), "virtual tensors report 2 leaks"),
        (("--say", "memory leak here"), "memory leak here"),
        (("--exit", "3"), "the b server ended with status 3"),
    ],
)
def test_what_goes_wrong_is_told_and_what_was_measured_is_kept(
    bench: Bench, options: tuple[str, ...], message: str
) -> None:
    said, status = bench([fake("a"), fake("b", *options)], "--repeats", "1", "--runs-per-start", "2")
    assert isinstance(status, str)
    assert message in status
    assert message in said["results"]["error"]
    assert len([run for run in said["results"]["runs"] if run["side"] == "a"]) == 2
    assert '"/' not in json.dumps(said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clients", "0"), "0 is too few"),
        (("--turns", "some"), "'some' is not a whole number"),
        (("--output", "-1"), "'-1' is not a whole number"),
        (("--system-prompt", "8", "--system-prompt", "8"), "the same one twice"),
        (("--context-length", "50"), "needs 980 tokens, but the servers have room for 50"),
        (("--max-total-tokens", "979"), "needs 980 tokens, but the servers have room for 979"),
        (("--side", "stock"), "'stock' is not NAME=ARGUMENTS"),
        (("--side", "a/b=--x"), "is not NAME=ARGUMENTS"),
        (("--side", "a=", "--side", "a=--x"), "the same name twice"),
        (("--side", "a=--x 'y"), "No closing quotation"),
        (("--server-args", "--x 'y"), "--server-args: No closing quotation"),
        (("--model", "nowhere"), "--model takes a folder with a config.json, and there is no nowhere/config.json"),
        (("--device", "cuda"), "no CUDA driver"),
    ],
)
def test_arguments_that_make_no_sense(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.machine, "gpus", lambda: serve.machine.Gpus([], "no CUDA driver"))
    with pytest.raises(SystemExit) as ended:
        serve.plan(["--turns", "1", "--first", "844", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.json").write_text("{}")
    with pytest.raises(SystemExit):
        serve.plan(["--device", "cpu", "--model", "."])
    assert "config.json has no vocab_size" in capsys.readouterr().err


def test_the_shape_of_the_published_commands() -> None:
    """bench/llama8b is what `vt-sglang replay` and bench/steady.py call llama-3-8b."""
    model = ROOT / "bench/llama8b"
    asked, _ = serve.plan([*SMALL, "--model", str(model), "--server-args=--load-format dummy"])
    assert asked.vocabulary == 128_256
    named, its = (sizes.model(name, "bfloat16").token_bytes for name in ("llama-3-8b", str(model)))
    assert its == named == 2**17


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the goal: 64 clients, 3 turns, 512 + 128 tokens in, 128 out, beside FlashAttention-3."""
    monkeypatch.setattr(serve.machine, "gpus", lambda: serve.machine.Gpus(["a GPU"], ""))
    plan, path = serve.plan(["--server-args", "--load-format dummy"])
    assert path is None
    (load,) = plan.loads
    assert (load.clients, load.turns, load.system_tokens) == (64, 3, 0)
    assert (load.first_tokens, load.next_tokens, load.output_tokens) == (512, 128, 128)
    assert (plan.repeats, plan.runs_per_start, plan.together, plan.on_gpu) == (3, 1, False, True)
    assert plan.vocabulary == toy_model.VOCABULARY
    stock, vtensor = plan.launches
    assert (stock.name, vtensor.name) == ("stock-fa3", "vtensor")
    common = ["--sleep-on-idle", "--load-format", "dummy"]
    assert stock.command[-5:] == [*common, "--attention-backend", "fa3"]
    assert vtensor.command[-5:] == [*common, "--radix-cache-backend", "vtensor"]
    assert stock.environment == vtensor.environment | NO_PLUGINS
    assert not {"--max-total-tokens", "--chunked-prefill-size"} & {*stock.command, *vtensor.command}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/some/folder/model", "model"),
        ("--model=/some/model --x /other/y/", "--model=model --x y/"),
        ("a=--chat-template '/x/y.jinja'", "a=--chat-template 'y.jinja'"),
        ("bench/serve.py ../x ~/y report/z", "bench/serve.py ../x ~/y report/z"),
        ("http://host/path", "http://host/path"),
        ("3 / 4", "3 / 4"),
    ],
)
def test_commands_without_folders_of_a_machine(text: str, shown: str) -> None:
    assert short(text) == shown


def test_with_real_servers(tmp_path: Path) -> None:
    """Stock SGLang and virtual tensors, side by side on the toy model."""
    (tmp_path / "sglang").mkdir()  # of a folder that happens to be the current one, nothing is imported
    (tmp_path / "sglang/__init__.py").write_text("raise ImportError")
    load = ["--clients", "2", "--system-prompt", "24", "--repeats", "1", "--runs-per-start", "2", "--together"]
    options = [*SMALL, *load, "--server-args=--incremental-streaming-output", "--json", str(tmp_path / "serve.json")]
    command = [sys.executable, str(ROOT / "bench/serve.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    said = json.loads((tmp_path / "serve.json").read_text())
    assert '"/' not in json.dumps(said)
    result = said["results"]
    assert [run["side"] for run in result["runs"]] == ["stock-torch", "vtensor"] * 2
    for run in result["runs"]:
        assert (run["requests"], run["failed"], run["output_tokens"]) == (4, 0, 16)
        assert run["cached_tokens"] >= 2 * (24 + 12)
    stock, vtensor = result["starts"]
    assert stock["kv_idle_bytes"] == stock["kv_after_bytes"] > vtensor["kv_after_bytes"] > 0
    assert vtensor["vtensor"]["counters"]["pages_created"] > 0
    assert min(start["idle_bytes"] for start in (stock, vtensor)) > 0
    (load,) = result["loads"]
    assert load["rows"][0]["beside"]["vtensor"]["verdict"] in ("within spread", "ahead", "behind")
