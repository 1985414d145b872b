# SPDX-License-Identifier: Apache-2.0
"""Arrival times and think times: drawn before anything is played, the same for every server."""

import gzip
import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from vt_sglang.chat.entries import DialogueError
from vt_sglang.chat.pace import poisson, think_times, timestamps
from vt_sglang.chat.thinking import Thinking


def test_arrivals_are_those_of_a_poisson_process() -> None:
    """Gaps are exponential: mean 1 / rate, as large as their standard deviation, a share of exp(-1) above the mean;
    arrivals in equal windows have a variance equal to their mean."""
    times = poisson(5.0, 20_000, "0")
    assert times == sorted(times)
    gaps = [later - sooner for sooner, later in pairwise([0.0, *times])]
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.03)
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.02)
    counts = [0] * int(times[-1])
    for time in times:
        if time < len(counts):
            counts[int(time)] += 1
    assert statistics.variance(counts) / statistics.fmean(counts) == pytest.approx(1.0, abs=0.1)


def test_equal_seeds_give_equal_times_and_a_rate_only_scales_them() -> None:
    assert poisson(2.0, 50, "1") == poisson(2.0, 50, "1")
    assert poisson(2.0, 50, "1") != poisson(2.0, 50, "2")
    assert poisson(4.0, 50, "1") == pytest.approx([time / 2 for time in poisson(2.0, 50, "1")])
    assert poisson(2.0, 60, "1")[:50] == poisson(2.0, 50, "1")


def test_think_times() -> None:
    constant = think_times(2.0, Thinking.CONSTANT, [3, 1], "0")
    assert constant == [[0.0, 2.0, 2.0], [0.0]]
    drawn = think_times(2.0, Thinking.EXPONENTIAL, [5000], "0")
    assert (
        drawn
        == think_times(2.0, Thinking.EXPONENTIAL, [5000], "0")
        != think_times(2.0, Thinking.EXPONENTIAL, [5000], "1")
    )
    assert drawn[0][0] == 0.0
    assert statistics.fmean(drawn[0][1:]) == pytest.approx(2.0, rel=0.06)
    assert statistics.stdev(drawn[0][1:]) == pytest.approx(2.0, rel=0.06)


def lines(*times: object) -> bytes:
    return b"".join(json.dumps({"timestamp": time, "hash_ids": [0]}).encode() + b"\n" for time in times)


def test_times_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(lines(3000, 9000, 5000.5) + b"nonsense, after what is wanted\n")
    assert timestamps(path, 3, in_order=False, time_scale=1.0) == pytest.approx([0.0, 2.0005, 6.0])
    assert timestamps(path, 3, in_order=True, time_scale=2.0) == pytest.approx([0.0, 3.0, 1.00025])
    path.write_bytes(gzip.compress(b'[{"timestamp": 1000},\n{"timestamp": 1500}]'))
    assert timestamps(path, 2, in_order=False, time_scale=1.0) == [0.0, 0.5]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lines(1), "1 timestamps for 2 dialogues"),
        (lines(1, None), "line 2: no `timestamp` in milliseconds"),
        (lines(1, -4), "line 2: no `timestamp` in milliseconds"),
        (lines(1, True), "line 2: no `timestamp` in milliseconds"),
        (lines(1, 10**400), "line 2: no `timestamp` in milliseconds"),
        (b'{"timestamp": 1}\n{"timestamp": NaN}', "line 2: no `timestamp` in milliseconds"),
        (lines(1) + b"[2]\n", "line 2: no `timestamp` in milliseconds"),
        (lines(1) + b"{\n", "line 2: Expecting property name"),
    ],
)
def test_times_that_cannot_be_used(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    with pytest.raises(DialogueError) as caught:
        timestamps(path, 2, in_order=False, time_scale=1.0)
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)
