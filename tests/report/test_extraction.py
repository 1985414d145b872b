# SPDX-License-Identifier: Apache-2.0
"""What is taken from results, and what is said of files that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_results import RESULTS, TOKEN_BYTES, chat_result, replay_result

from vt_sglang.report.load import ReportError, load
from vt_sglang.report.model import Figure, Groups, Lines
from vt_sglang.report.sections import sections

Save = Callable[[object, str], Path]
GIB = 2.0**30


def figures(*paths: Path) -> dict[str, Figure]:
    return {figure.name: figure for section in sections(load(paths)) for figure in section.figures}


def kept(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def by_name(plot: Lines | Groups | None) -> dict[str, Any]:
    assert plot is not None
    return {it.name: it for it in (plot.lines if isinstance(plot, Lines) else plot.groups)}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_kept_result_is_known(path: Path) -> None:
    found = figures(path)
    assert found
    assert all(figure.table.rows for figure in found.values())
    assert any(figure.plot for figure in found.values())
    for figure in found.values():
        assert all(len(row) == len(figure.table.columns) for row in figure.table.rows)


def test_shared_decode() -> None:
    found, rows = figures(RESULTS / "shared.json"), kept("shared")["results"]
    times, ratios = by_name(found["shared-time"].plot), by_name(found["shared-ratio"].plot)
    assert times["vtensor: Hopper"].values == tuple(row["hopper_us"] for row in rows)
    assert times["FA3, cascade"].values == tuple(row.get("fa3_cascade_us") for row in rows)
    assert times["floor"].values == tuple(row["floor_us"] for row in rows)
    assert ratios["vtensor: over FA3, page 1"].values == tuple(row["ratio"] for row in rows)


def test_chat() -> None:
    found, result = figures(RESULTS / "chat.json"), kept("chat")
    for server in result["servers"]:
        name, summary = server["name"], server["summary"]
        assert by_name(found["chat-throughput"].plot)[name].values == (summary["output_tokens_per_s"],)
        ttft = tuple(summary[f"ttft_{it}_ms"] for it in ("p50", "p90", "p99"))
        assert by_name(found["chat-ttft"].plot)[name].values == ttft
        assert by_name(found["chat-hit-rate"].plot)[name].values == (summary["hit_rate"] * 100,)
    stock, vtensor = (by_name(found["chat-kv-memory"].plot)[name].values[0] for name in ("stock", "vtensor"))
    state = result["servers"][1]["vtensor"]
    assert vtensor == state["physical_bytes"] / 2**20
    assert stock == result["servers"][0]["total_tokens"] * state["token_bytes"] / 2**20


def test_chat_requests(save: Save) -> None:
    found = figures(save(chat_result(), "chat.json"))
    turns = by_name(found["chat-hit-rate-by-turn"].plot)["vtensor"]
    # Of four dialogues: 60 cached tokens more than 100 a turn each.
    assert turns.x == (1, 2, 3)
    assert turns.y == pytest.approx([100 * 60 / 800, 100 * 460 / 1200, 100 * 860 / 1600])
    shares = found["chat-ttft-by-cached-share"].table
    assert sum(row[2] for row in shares.rows if row[0] == "stock") == 12
    assert shares.rows[0][:3] == ("stock", "0 to 10 %", 2)
    assert shares.rows[0][4:] == (50.5, 50.25, 50.75)
    over_time = by_name(found["chat-hit-rate-over-time"].plot)["stock"]
    assert over_time.x[0] == 0.0
    assert over_time.y[-1] == pytest.approx(100 * 1380 / 3600)
    assert by_name(found["chat-memory-over-time"].plot)["stock"].y == (1.0, 2.0, 3.0, 4.0)


def test_chat_repeats(save: Save) -> None:
    throughput = figures(save(chat_result(repeats=True), "chat.json"))["chat-throughput"]
    group = by_name(throughput.plot)["vtensor"]
    assert (group.values, group.low, group.high) == ((101.0,), (91.0,), (111.0,))
    assert throughput.table.rows[0][-2:] == (1.01, "within noise")
    assert "3 repeats" in throughput.notes[0]


def test_runs_side_by_side(save: Save) -> None:
    """Of a server that did not take part in a run, nothing is shown there."""
    runs = save(chat_result(), "a.json"), save(chat_result(("vtensor",)), "b.json")
    plot = figures(*runs)["chat-throughput"].plot
    assert isinstance(plot, Groups)
    assert plot.categories == ("a", "b")
    assert by_name(plot)["stock"].values[1] is None
    assert None not in by_name(plot)["vtensor"].values


def test_replay(save: Save) -> None:
    result = replay_result()
    found = figures(save(result, "replay.json"))
    capacity = found["replay-hit-rate-over-capacity"].plot
    assert isinstance(capacity, Lines)
    assert by_name(capacity)["vtensor"].y == (21.0, 38.1)
    assert by_name(capacity)["RadixCache"].x == (800_000 * TOKEN_BYTES / GIB,)
    assert len(by_name(capacity)["LRU, every capacity"].x) == len(result["curve"]) - 1, "0 has no logarithm"
    assert capacity.levels[0].value == 38.6
    assert capacity.spots[0].y == 37.0
    over_time = by_name(found["replay-hit-rate-over-time"].plot)
    assert set(over_time) == {"infinite", "vtensor, 24.4 GiB", "vtensor, 97.7 GiB", "RadixCache, 97.7 GiB"}
    assert over_time["infinite"].y[-1] == 38.6
    assert over_time["infinite"].x[-1] == 30.0, "minutes"
    assert by_name(found["replay-found"].plot)["aliased"].values == (0.005, 0.005)
    assert by_name(found["replay-times-faster"].plot)["vtensor"].values == (40.0,)


def test_replay_without_times(save: Save) -> None:
    result = replay_result()
    for side in [result["infinite"], *(it["vtensor"] for it in result["capacities"])]:
        for point in side["over_time"]:
            point["time_s"] = None
    result["capacities"][1]["radix"] = None
    plot = figures(save(result, "replay.json"))["replay-hit-rate-over-time"].plot
    assert isinstance(plot, Lines)
    assert plot.x.title == "M prompt tokens"
    assert plot.lines[0].x[-1] == pytest.approx(0.03)


def test_serve() -> None:
    found, result = figures(RESULTS / "serve.json"), kept("serve")["results"]
    row = next(row for row in result["loads"][0]["rows"] if row["metric"] == "ttft_p99_ms")
    side = row["sides"]["vtensor"]
    group = by_name(found["serve-ttft"].plot)["vtensor"]
    assert (group.values[1], group.low[1], group.high[1]) == (side["median"], side["low"], side["high"])
    peak = next(row for row in result["servers"] if row["metric"] == "peak_bytes")
    assert by_name(found["serve-memory"].plot)["vtensor"].values[1] == peak["sides"]["vtensor"]["median"] / GIB


def test_kernels_without_what_older_results_lack(tmp_path: Path) -> None:
    """The floor of prefill, which must not be taken for another benchmark's; FlashAttention-3 over virtual tensors in
    decode, and its kernel for Hopper."""
    prefill, decode = kept("prefill"), kept("decode")
    found = figures(RESULTS / "prefill.json", RESULTS / "decode.json")
    floors = tuple(row["floor_us"] for row in prefill["results"])
    assert by_name(found["prefill-time"].plot)["floor"].values == floors
    fa3 = tuple(row["fa3_contiguous_us"] for row in decode["results"])
    assert by_name(found["decode-time"].plot)["vtensor: FA3"].values == fa3
    for row in prefill["results"]:
        del row["floor_us"], row["auto"], row["auto_us"]
    for row in decode["results"]:
        del row["fa3_contiguous_us"], row["hopper_us"]
    for name, result in (("prefill", prefill), ("decode", decode)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    before = figures(tmp_path / "prefill.json", tmp_path / "decode.json")
    assert "floor" not in by_name(before["prefill-time"].plot)
    assert not {"vtensor: FA3", "vtensor: Hopper"} & set(by_name(before["decode-time"].plot))
    for found_now, own in (
        (found, kept("decode")["results"][0]["hopper_us"]),
        (before, decode["results"][0]["triton_us"]),
    ):
        ratio = by_name(found_now["decode-ratio"].plot)["vtensor: over FA3, page 1"].values[0]
        assert ratio == decode["results"][0]["fa3_page1_us"] / own
    (tmp_path / "old.json").write_text(json.dumps(decode))
    together = by_name(figures(tmp_path / "old.json", RESULTS / "decode.json")["decode-ratio"].plot)
    for name, its in (("old", before), ("decode", found)):
        alone = by_name(its["decode-ratio"].plot)["vtensor: over FA3, page 1"].values
        assert together[f"{name}: vtensor: over FA3, page 1"].values == alone, "each by its own kernel"


def test_kernels_and_tree() -> None:
    found = figures(*(RESULTS / f"{name}.json" for name in ("decode", "prefill", "tree")))
    row = kept("prefill")["results"][0]
    rate = by_name(found["prefill-rate"].plot)["vtensor: FA3"].values[0]
    assert rate == pytest.approx(row["gigaflop"] * 1e9 / (row["fa3_contiguous_us"] * 1e-6) / 1e12)
    row = kept("decode")["results"][2]
    assert by_name(found["decode-time"].plot)["floor"].values[2] == row["floor_us"]
    assert by_name(found["decode-ratio"].plot)["over the better FA3"].values[2] == row["ratio"]
    ratios = tuple(row["ratio"] for row in kept("tree")["results"])
    assert by_name(found["tree-times-faster"].plot)["vtensor"].values == ratios


def without(key: str) -> dict[str, Any]:
    result = chat_result()
    del result["servers"][1]["summary"][key]
    return result


def test_what_is_not_known_is_left_out(save: Save) -> None:
    assert None in by_name(figures(save(without("hit_rate"), "chat.json"))["chat-hit-rate"].plot)["vtensor"].values


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ('{"servers": [NaN]}', "NaN is not a number"),
        ("[]", "the whole: an object is expected"),
        ('{"a": 1}', "not a result of any of"),
        ('{"kind": "soup"}', "kind 'soup' is unknown"),
        ('{"schema": 2, "kind": "chat"}', "schema 2 is newer"),
        ('{"kind": "chat"}', "servers is missing"),
        ('{"kind": "chat", "servers": 3}', "servers: a list is expected, not 3"),
        ('{"kind": "chat", "servers": [{"name": "s", "command": [], "summary": {"hit_rate": "x"}}]}', "not 'x'"),
        ('{"kind": "tree", "results": [{"operation": "o", "ratio": true}]}', "results[0].ratio: a number"),
        ('{"kind": "prefill", "results": [{"shape": "s", "gigaflop": 1, "triton_us": 0}]}', "above 0"),
    ],
)
def test_broken_files(save: Save, tmp_path: Path, content: str, said: str) -> None:
    """The message names the file and the reason, though a whole one of its kind stands beside it."""
    path = tmp_path / "broken.json"
    path.write_text(content)
    whole = save(chat_result(), "whole.json")
    with pytest.raises(ReportError) as error:
        figures(whole, path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_labels_are_unique(save: Save, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [save(chat_result(), "chat.json"), save(chat_result(), "other/chat.json"), tmp_path / "chat.json"]
    assert len({run.label for run in load(paths)}) == 3
