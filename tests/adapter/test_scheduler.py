# SPDX-License-Identifier: Apache-2.0
"""A real SGLang scheduler on virtual tensors, through everything that a KV cache has to survive, with SGLang's strict
checks on at every step, busy and idle, and the core's own beside them. Outputs must equal stock SGLang's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from schedulers import SERVER_ARGS, STOCK, VTENSOR, run_scheduler
from toy import VOCABULARY

WORKLOADS = {
    "varied": {"conversations": 5, "turns": 3, "new": 36},
    # Short prompts and long answers: requests are let in and then outgrow the pool.
    "growing": {"conversations": 6, "turns": 2, "new": 80},
    "important": {"conversations": 5, "turns": 3, "new": 36, "priorities": True},
}
COMMON = {"seed": 7, "at_once": 12, "longest": 420, "aborts": True, "flush": True}

EVERYTHING = {
    "abort after the first token",
    "abort before the last token",
    "abort between chunks",
    "abort while decoding",
    "abort while waiting",
    "flush",
    "fork of a live request",
}


@dataclass
class Case:
    """A way to run the workload on virtual tensors."""

    name: str
    server_args: dict[str, Any]
    workload: str = "varied"
    page_bytes: int = 4096
    environment: dict[str, str] = field(default_factory=dict)
    evicts: bool = False
    retractions: int = 0
    """At least so many."""
    core: dict[str, Any] = field(default_factory=dict)
    """How the core is made, in place of how the adapter makes it."""
    memory: dict[int, int | None] = field(default_factory=dict)
    """From a step of the scheduler on: pages for which there is memory, whatever the budget allows. None: for all."""


# Admission that forgets at once what running requests will still need, so that they are retracted again and again.
RECKLESS = {"SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR": "0", "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "2"}

MOVED = {"move_pages": True}

# The longest request takes 420 tokens; a tiny pool has room for little more than one such.
CASES = [
    Case("plain", {"max_total_tokens": 20000, "disable_overlap_schedule": True}),
    Case("overlap", {"max_total_tokens": 20000}, page_bytes=2**14),
    Case(
        "retraction forced",
        {"max_total_tokens": 2000},
        page_bytes=8192,
        environment={"SGLANG_TEST_RETRACT": "1"},
        evicts=True,
        retractions=100,
    ),
    *(
        Case(
            f"tiny pool, {name}",
            {"max_total_tokens": 760, "enable_metrics": True} | args,
            workload="growing",
            environment=RECKLESS,
            evicts=True,
            retractions=3,
        )
        for name, args in (
            ("no overlap", {"disable_overlap_schedule": True}),
            ("overlap", {}),
            ("mixed chunks", {"enable_mixed_chunk": True}),
        )
    ),
    Case(
        "preemption",
        {
            "max_total_tokens": 2000,
            "max_running_requests": 3,
            "enable_priority_scheduling": True,
            "enable_metrics": True,
            "schedule_policy": "fcfs",
        },
        workload="important",
        evicts=True,
        retractions=5,
    ),
    Case(
        "few mappings",
        {"max_total_tokens": 20000, "context_length": 430},
        workload="growing",
        environment=RECKLESS,
        core={"mapping_limit": 170},  # of which the longest request alone may need 160
    ),
    Case(
        "moved and copied",
        {"max_total_tokens": 760, "enable_metrics": True},
        workload="growing",
        core=MOVED | {"copy_from_pages": 1},
        environment=RECKLESS,
        evicts=True,
        retractions=3,
    ),
    *(
        Case(
            f"out of memory, {name}",
            {"max_total_tokens": 20000} | args,
            workload="growing",
            environment=RECKLESS,
            evicts=True,
            retractions=2,
            memory=memory,  # 0: for no more pages than there are then
        )
        for name, args, memory in (
            ("while others run", {"disable_overlap_schedule": True}, {25: 0}),
            ("between chunks", {}, {12: 0}),
            ("mixed chunks", {"enable_mixed_chunk": True}, {12: 0}),
            ("for a while", {}, {25: 0, 250: None}),
        )
    ),
    Case("stock attention", {"max_total_tokens": 1200, "attention_backend": "torch_native"}, evicts=True),
]


def _run(folder: Path, model: Path, workload: str, server_args: dict[str, Any], **settings: Any) -> dict[str, Any]:
    args = SERVER_ARGS | {"model_path": str(model)} | server_args
    return run_scheduler(folder, {"server_args": args, "workload": COMMON | WORKLOADS[workload]} | settings)


@pytest.fixture(scope="module")
def stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What stock SGLang gives for each workload, with more room than it needs. What a request generates depends on its
    prompt alone, so that one run is the measure of all."""
    args = STOCK | {"max_total_tokens": 20000, "disable_overlap_schedule": True}
    runs = {name: _run(tmp_path_factory.mktemp(name), model, name, args) for name in ("varied", "growing")}
    return runs | {"important": runs["varied"]}  # the same requests in another order


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_equal_stock(case: Case, model: Path, stock: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Whatever befalls the requests, their outputs are stock's, and nothing is left behind."""
    environment = {"VTENSOR_PAGE_BYTES": str(case.page_bytes)} | case.environment
    limits: dict[str, Any] = {"memory": case.memory, "core": case.core}
    result = _run(tmp_path, model, case.workload, VTENSOR | case.server_args, environment=environment, **limits)
    expected = stock[case.workload]
    assert result["cache"] == "VTensorCache"
    assert result["overlap"] == (not case.server_args.get("disable_overlap_schedule", False))
    assert set(result["seen"]) >= EVERYTHING
    assert ("MIXED" in result["modes"]) == case.server_args.get("enable_mixed_chunk", False)
    assert set(result["outputs"]) == set(expected["outputs"])
    for rid in expected["generates"]:
        mine, theirs = result["outputs"][rid], expected["outputs"][rid]
        if rid in expected["aborted"]:  # they end where the abort met them
            assert mine[: len(theirs)] == theirs[: len(mine)], rid
        else:
            assert mine == theirs, rid
            assert result["prompts"][rid] == expected["prompts"][rid], rid
    counters, usage = result["vtensor"]["counters"], result["vtensor"]["usage"]
    assert result["vtensor"]["leaks"] == 0
    assert usage["live_slots"] == usage["live_tokens"] == 0
    assert counters["pages_aliased"] > 0
    assert counters["tails_extended"] > 0
    assert counters["tails_copied"] > 0
    assert (counters["pages_copied"] > 0) == ("copy_from_pages" in case.core)
    assert result["retractions"] >= case.retractions
    assert (counters["nodes_evicted"] > 0) == case.evicts
    assert result["capacity"] <= case.server_args["max_total_tokens"]
    assert (counters["creations_failed"] > 0) == bool(case.memory)
    # A request tells of what it found when it was let in first; the core counts every time.
    tally = result["vtensor"]["tally"]
    assert sum(result["cached"].values()) == counters["tokens_matched"] - tally["rebound_cached_tokens"]
    assert tally["rebound_requests"] <= result["retractions"]
    assert (tally["rebound_requests"] > 0) == (result["retractions"] > 0)
    if case.server_args.get("enable_metrics"):
        check_metrics(result["metrics"], result["vtensor"])
    if case.memory:
        assert (usage["withheld_pages"] == 0) == (list(case.memory.values())[-1] is None)


@pytest.mark.parametrize(
    ("server_args", "sizes"),
    [
        (
            {"max_total_tokens": 20000, "chunked_prefill_size": 1024},
            {"trunk": 64, "fill": 320, "fills": 2, "large": 540, "new": 60, "memory_ends": True},
        ),
        (
            {"max_total_tokens": 2400, "chunked_prefill_size": 128, "context_length": 2200},
            {"trunk": 600, "fill": 580, "fills": 4, "large": 1450, "new": 120, "memory_ends": False},
        ),
    ],
    ids=["pages of the same step", "later chunks"],
)
def test_copies_take_nothing_that_others_will_need(
    server_args: dict[str, Any], sizes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """All are let in and come to their end, and nobody is retracted."""
    settings = {
        "server_args": SERVER_ARGS | VTENSOR | {"model_path": str(model)} | server_args,
        "workload": {"kind": "trunk", "seed": 1, "vocabulary": VOCABULARY} | sizes,
        "core": MOVED | {"copy_from_pages": 1},
        "environment": {"VTENSOR_PAGE_BYTES": "4096"},
        "memory": {10**9: 0},  # so that its end can be told of
    }
    result = run_scheduler(tmp_path, settings)
    assert result["vtensor"]["counters"]["pages_copied"] > 0
    assert result["retractions"] == 0
    lengths = {rid: len(tokens) for rid, tokens in result["outputs"].items()}
    assert lengths | {"holder": sizes["new"], "copier": sizes["new"], "large": 4} == lengths


def test_a_long_prefix_is_mapped_while_others_run(model: Path, tmp_path: Path) -> None:
    """By the thread; the request waits for it, comes to the same end, and its bind has nothing of it left to map. Who
    is behind it does not wait."""
    trunk, results = 600, {}
    on_whole_pages = trunk - 4096 // 768
    for ahead in (True, False):
        settings = {
            "server_args": SERVER_ARGS | VTENSOR | {"model_path": str(model), "max_total_tokens": 20000},
            "workload": {"kind": "trunk", "seed": 1, "vocabulary": VOCABULARY, "memory_ends": False}
            | {"trunk": trunk, "fill": 16, "fills": 1, "large": 16, "new": 60},
            "core": MOVED | {"copy_from_pages": 8, "map_ahead": ahead},
            "environment": {"VTENSOR_PAGE_BYTES": "4096"},
        }
        folder = tmp_path / str(ahead)
        folder.mkdir()
        results[ahead] = run_scheduler(folder, settings)
    assert results[True]["outputs"] == results[False]["outputs"]
    assert results[True]["admitted"] == ["large", "copier"]
    assert results[False]["admitted"] == ["copier", "large"]
    mapped = {ahead: it["vtensor"]["counters"] for ahead, it in results.items()}
    assert mapped[False]["tokens_aliased"] >= on_whole_pages
    assert mapped[False]["pages_mapped_ahead"] == 0
    assert mapped[True]["tokens_adopted"] >= on_whole_pages
    assert mapped[True]["tokens_aliased"] == 0
    assert mapped[True]["pages_copied"] == 0


@pytest.mark.parametrize(
    ("server_args", "lacking"),
    [
        ({"disable_overlap_schedule": True}, {"unmappable": [[12, 14], [40, 42], [70, 71]]}),
        ({}, {"unmappable": [[12, 14], [40, 42], [70, 71]]}),
        ({"enable_mixed_chunk": True}, {"unmappable": [[12, 14], [40, 42], [70, 71]]}),
        ({"enable_mixed_chunk": True}, {"ungrowable": [[12, 14], [40, 42], [70, 71]]}),
        ({}, {"unmappable": [[12, 14], [25, 26]], "unmappable_error": "OutOfPages"}),
    ],
    ids=["no overlap", "overlap", "mixed chunks", "mixed chunks, only for those that decode", "no pages"],
)
def test_what_cannot_be_mapped_ends_requests_and_not_the_server(
    server_args: dict[str, Any],
    lacking: dict[str, Any],
    model: Path,
    stock: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """New ones with an error, decoded ones by retraction; the others' outputs are stock's."""
    result = _run(
        tmp_path,
        model,
        "growing",
        VTENSOR | {"max_total_tokens": 20000} | server_args,
        environment={"VTENSOR_PAGE_BYTES": "4096"},
        **lacking,
    )
    expected = stock["growing"]
    whole = 0
    for rid in set(expected["generates"]) & set(result["outputs"]) - set(expected["aborted"]):
        if result["prompts"][rid] == expected["prompts"][rid]:
            mine, theirs = result["outputs"][rid], expected["outputs"][rid]
            assert mine == theirs[: len(mine)], rid
            whole += mine == theirs
    assert whole > len(expected["generates"]) / 4
    ended = {rid for rid, how in result["finished"].items() if how == "FINISH_ABORT"} - set(result["aborted"])
    assert ended
    assert result["retractions"] > 0
    assert result["vtensor"]["leaks"] == 0
    usage = result["vtensor"]["usage"]
    assert usage["live_slots"] == usage["live_tokens"] == 0


def check_metrics(metrics: dict[str, float], state: dict[str, Any]) -> None:
    """A scrape tells what the core and the tally count, and SGLang's own counter of evictions agrees."""
    counters, usage, tally = state["counters"], state["usage"], state["tally"]
    name = "sglang:vtensor_{}".format
    for source in ("adopted", "aliased", "copied"):
        assert metrics[name(f"cached_tokens_total{{source={source}}}")] == counters[f"tokens_{source}"]
        reused = metrics[name(f"kv_reused_bytes_total{{source={source}}}")]
        assert reused == counters[f"tokens_{source}"] * state["token_bytes"]
    for phase in ("prefill", "decode"):
        read = metrics[name(f"kv_read_bytes_total{{phase={phase}}}")]
        assert read == tally[f"{phase}_read_tokens"] * state["token_bytes"] > 0
    assert metrics[name("kv_saved_bytes_total")] == tally["decode_saved_tokens"] == 0  # nothing is on a CPU
    for metric, count in {
        "requests_bound": counters["binds"],
        "prompt_tokens": tally["prompt_tokens"],
        "rebound_cached_tokens": tally["rebound_cached_tokens"],
        "evicted_nodes": counters["nodes_evicted"],
        "evicted_tokens": counters["tokens_evicted"],
        "pages_mapped": counters["pages_mapped"],
        "pages_moved": counters["pages_moved"],
        "pages_copied": counters["pages_copied"],
        "tails_copied": counters["tails_copied"],
        "driver_calls": counters["driver_calls"],
    }.items():
        assert metrics[name(f"{metric}_total")] == count, metric
    assert metrics[name("driver_seconds_total")] == pytest.approx(counters["driver_ns"] / 1e9)
    assert metrics["sglang:evicted_tokens_total"] == counters["tokens_evicted"] > 0
    pages = {state: metrics[name(f"pages{{state={state}}}")] for state in state["pages"]}
    assert pages == state["pages"]
    assert sum(pages.values()) == usage["budget_pages"]


def test_as_much_is_cached_as_by_stock(model: Path, stock: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Scheduled the same way, each request finds as many tokens in the cache as on stock SGLang."""
    args = VTENSOR | {"max_total_tokens": 20000, "disable_overlap_schedule": True}
    mine, theirs = _run(tmp_path, model, "varied", args)["cached"], stock["varied"]["cached"]
    assert sum(theirs.values()) > 5000
    assert not {rid: (mine[rid], tokens) for rid, tokens in theirs.items() if mine[rid] < tokens}


@pytest.mark.parametrize(
    ("overlap", "memory"),
    [
        (False, {"1": 45}),  # 234 tokens: less than the longest prompts, and than many prompts with their answers
        (True, {"1": 45}),
        (True, {"1": 1, "100": None}),  # for none at all, and then for all
    ],
)
def test_what_there_is_no_memory_for_ends_with_an_error(
    overlap: bool, memory: dict[str, int | None], model: Path, stock: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Every request ends, the server goes on, and whatever was said is what stock says."""
    args = VTENSOR | {"max_total_tokens": 20000, "disable_overlap_schedule": not overlap}
    environment = {"VTENSOR_PAGE_BYTES": "4096"} | RECKLESS
    result = _run(tmp_path, model, "growing", args, environment=environment, memory=memory)
    expected = stock["growing"]
    given_up = {rid for rid, how in result["finished"].items() if how == "FINISH_ABORT"} - set(result["aborted"])
    finished = 0
    for rid in expected["generates"]:
        if rid in result["outputs"] and result["prompts"][rid] == expected["prompts"][rid]:
            mine, theirs = result["outputs"][rid], expected["outputs"][rid]
            assert mine[: len(theirs)] == theirs[: len(mine)], rid
            finished += mine == theirs
    assert given_up
    assert finished > 0
    assert result["vtensor"]["leaks"] == 0
    assert result["vtensor"]["usage"]["live_slots"] == 0
    assert result["vtensor"]["counters"]["creations_failed"] > 0
