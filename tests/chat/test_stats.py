# SPDX-License-Identifier: Apache-2.0
"""Statistics of repeats, against known values."""

import math
import random
import statistics

import pytest

from vt_sglang.chat.figures import figures, table
from vt_sglang.chat.stats import Interval, Spread, interval, ratio, spread, t_quantile, verdict


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (4, 2.7764), (30, 2.0423), (31, 2.0395), (60, 2.0003), (120, 1.9799)]
)
def test_quantiles_of_students_t(degrees: int, value: float) -> None:
    """Of published tables, at 0.975."""
    assert t_quantile(degrees) == pytest.approx(value, abs=1e-4)


def test_interval_of_known_values() -> None:
    """Mean 5, standard deviation sqrt(10), five values: 5 +- 2.7764 * sqrt(10 / 5)."""
    found = interval([1, 3, 5, 7, 9])
    half = 2.7764 * math.sqrt(2)
    assert (found.mean, found.low, found.high) == (5, pytest.approx(5 - half), pytest.approx(5 + half))
    assert interval([4.0]) == Interval(4.0, None, None)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    drawn = random.Random(0)
    covered = 0
    for _ in range(2000):
        found = interval([drawn.gauss(10, 3) for _ in range(4)])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 10 <= found.high
    assert 0.93 < covered / 2000 < 0.97


def test_ratio_is_that_of_pairs() -> None:
    """What a repeat does to both servers alike cancels out."""
    found = ratio([(100, 50), (10, 5), (1000, 500)])
    assert found is not None
    assert (found.mean, found.low, found.high) == (pytest.approx(0.5),) * 3
    logarithms = [math.log(it) for it in (0.4, 0.5, 0.6)]
    found = ratio([(10, 4), (10, 5), (10, 6)])
    assert found is not None
    half = 4.3027 * statistics.stdev(logarithms) / math.sqrt(3)
    mean = statistics.fmean(logarithms)
    assert (found.low, found.mean) == (pytest.approx(math.exp(mean - half)), pytest.approx(math.exp(mean)))


def test_no_ratio_of_nothing_or_zero() -> None:
    assert ratio([]) is None
    assert ratio([(1, 2), (0, 2)]) is None
    assert ratio([(1, 0)]) is None


@pytest.mark.parametrize(
    ("found", "if_more_is_better", "if_less_is_better"),
    [
        (Interval(1.1, 1.05, 1.2), "ahead", "behind"),
        (Interval(0.9, 0.8, 0.99), "behind", "ahead"),
        (Interval(1.1, 0.9, 1.3), "within noise", "within noise"),
        (Interval(1.0, 1.0, 1.0), "within noise", "within noise"),
        (Interval(1.1, None, None), None, None),
        (None, None, None),
    ],
)
def test_verdict(found: Interval | None, if_more_is_better: str | None, if_less_is_better: str | None) -> None:
    assert verdict(found, more_is_better=True) == if_more_is_better
    assert verdict(found, more_is_better=False) == if_less_is_better


def test_spread() -> None:
    assert spread([5.0, None, 1.0, 2.0]) == Spread(runs=3, median=2.0, low=1.0, high=5.0)
    assert spread([None]) is None


def test_figures_pair_the_runs_of_a_repeat() -> None:
    stock = {repeat: {"output_tokens_per_s": rate, "ttft_p50_ms": 10.0} for repeat, rate in enumerate((100, 200, 400))}
    other = {repeat: {"output_tokens_per_s": rate, "ttft_p50_ms": None} for repeat, rate in enumerate((220, 400, 880))}
    del other[1]
    rows = {row["metric"]: row for row in figures({"stock": stock, "other": other})}
    assert rows.keys() == {"output_tokens_per_s", "ttft_p50_ms"}  # of the others nothing is known
    rate = rows["output_tokens_per_s"]
    assert (rate["sides"]["stock"]["median"], rate["sides"]["stock"]["mean"]) == (200, pytest.approx(700 / 3))
    assert rate["sides"]["other"]["runs"] == 2
    assert rate["beside"]["other"]["ratio"] == pytest.approx(2.2)
    assert rate["beside"]["other"]["verdict"] == "ahead"
    assert rows["ttft_p50_ms"]["sides"]["other"] is None
    assert rows["ttft_p50_ms"]["beside"]["other"]["verdict"] is None
    header, lines = table(list(rows.values()))
    assert header == ["", "stock", "other", "other / stock", "other is"]
    assert lines[0][1].startswith("200.0; 233.3 ± ")
    assert lines[0][3:] == ["2.200 (2.200 to 2.200)", "ahead"]
    assert lines[1][2:] == ["-", "-", "-"]
