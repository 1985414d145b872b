# SPDX-License-Identifier: Apache-2.0
"""The search for the highest load: on servers whose outcome is known."""

import asyncio
from collections.abc import Callable

import pytest

from vt_sglang.chat.client import Answer
from vt_sglang.chat.judge import SearchPlan, judge
from vt_sglang.chat.measure import Limits
from vt_sglang.chat.play import Played, Request
from vt_sglang.chat.saturate import Probe, Search, search
from vt_sglang.chat.script import Script, Turn
from vt_sglang.chat.settings import Saturation
from vt_sglang.chat.workload import Workload

Passes = Callable[[float, int], bool]


def find(passes: Passes, *, start: float = 1.0, whole: bool = False, tolerance: float = 0.05, most: int = 40) -> Search:
    async def probe(load: float, attempt: int) -> Probe:
        good = passes(load, attempt)
        return Probe(load, attempt, good, () if good else ("too slow",))

    return asyncio.run(search(probe, start=start, whole=whole, tolerance=tolerance, max_probes=most))


@pytest.mark.parametrize("threshold", [0.3, 1.0, 1.7, 55.0])
@pytest.mark.parametrize("start", [0.5, 1.0, 20.0])
def test_a_threshold_is_found_from_below_and_from_above(threshold: float, start: float) -> None:
    found = find(lambda load, _: load <= threshold, start=start)
    assert found.ended == "tolerance"
    assert found.highest is not None
    assert found.lowest_failed is not None
    assert found.highest <= threshold < found.lowest_failed <= found.highest * 1.05


@pytest.mark.parametrize("threshold", [1, 2, 7, 100])
@pytest.mark.parametrize("start", [1, 4, 64])
def test_numbers_of_clients_are_found_exactly(threshold: int, start: int) -> None:
    found = find(lambda load, _: load <= threshold, start=start, whole=True, tolerance=0.001)
    assert (found.highest, found.lowest_failed, found.ended) == (threshold, threshold + 1, "tolerance")
    assert all(probe.load == int(probe.load) >= 1 for probe in found.probes)


def test_a_load_that_fails_once_is_tried_again() -> None:
    unlucky = find(lambda load, attempt: load <= 10 and (load != 8 or attempt == 1))
    assert unlucky.highest is not None
    assert unlucky.highest > 9
    assert [(it.attempt, it.passed) for it in unlucky.probes if it.load == 8] == [(0, False), (1, True)]
    failed = [it.load for it in unlucky.probes if not it.passed and it.load > 10]
    assert all(failed.count(load) == 2 for load in failed)


def test_the_number_of_probes_is_bounded() -> None:
    endless = find(lambda *_: True, most=5)
    assert (len(endless.probes), endless.highest, endless.ended) == (5, 16.0, "never failed")
    short = find(lambda load, _: load <= 10, most=7)
    assert (len(short.probes), short.ended) == (7, "probes")
    assert (short.highest, short.lowest_failed) == (8.0, 16.0)


def test_nothing_passes() -> None:
    found = find(lambda *_: False, whole=True, start=4)
    assert (found.highest, found.lowest_failed, found.ended) == (None, 1, "never passed")
    assert find(lambda *_: False, most=3).ended == "never passed"


def test_a_lost_server_ends_the_search() -> None:
    async def probe(load: float, attempt: int) -> Probe:
        return Probe(load, attempt, load < 4, (), lost=load >= 4)

    found = asyncio.run(search(probe, start=1, whole=False, tolerance=0.1, max_probes=20))
    assert (found.highest, found.ended, len(found.probes)) == (2, "server lost", 3)


def test_judgement() -> None:
    plan = SearchPlan(Saturation(90, 0.1, 9, 1, 1), Limits(50, 10), 1.0, False, lambda *_: Workload([], 1, 1))
    workload = Workload([Script((Turn([1], None),), 0, None)] * 10, 1, 2)

    def judged(ttft: list[float], gap: float = 5.0) -> Probe:
        answers = [Answer([1, 2], 1, 0, it, it + gap, [gap]) for it in ttft]
        requests = [Request(place, 0, answer) for place, answer in enumerate(answers)]
        return judge(plan, 2.0, 0, workload, Played(requests, seconds=1.0))

    assert judged([40.0] * 10).passed
    assert judged([40.0] * 9 + [900.0]).reasons == ("TTFT p90 126.0 ms is above 50 ms",)
    assert judged([40.0] * 10, gap=11).reasons == ("inter-token p90 11.0 ms is above 10 ms",)
    assert judged([40.0] * 9).reasons == ("1 of 10 requests failed or were not played",)
    assert judged([40.0] * 10).figures["summary"]["within_limits"] == 10
