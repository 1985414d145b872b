# SPDX-License-Identifier: Apache-2.0
"""What runs are said to mean."""

from typing import Any

import pytest
from serve_compare import METRICS, RUN_METRICS, START_METRICS, Spread, Verdict, compare, goals, spread, table, verdict

MORE, LESS = METRICS["output_tokens_per_s"], METRICS["ttft_p50_ms"]


def test_spread() -> None:
    assert spread([5.0, None, 1.0, 2.0]) == Spread(runs=3, median=2.0, low=1.0, high=5.0)
    assert spread([1.0, 2.0]) == Spread(2, 1.5, 1.0, 2.0)
    assert spread([None]) is None
    assert spread([]) is None


@pytest.mark.parametrize(
    ("reference", "other", "if_more_is_better", "if_less_is_better"),
    [
        ([1, 2, 3], [2, 3, 4], "within spread", "within spread"),
        ([1, 2, 3], [3, 4, 5], "within spread", "within spread"),  # ranges that touch
        ([1, 5], [2, 3], "within spread", "within spread"),
        ([2, 3], [1, 5], "within spread", "within spread"),
        ([1, 2, 3], [4, 5, 6], "ahead", "behind"),
        ([4, 5, 6], [1, 2, 3], "behind", "ahead"),
        ([1, 1], [1, 1], "within spread", "within spread"),
        ([1, 2, 3], [9], None, None),
        ([9], [1, 2, 3], None, None),
    ],
)
def test_verdict(
    reference: list[float], other: list[float], if_more_is_better: Verdict | None, if_less_is_better: Verdict | None
) -> None:
    sides = spread(reference), spread(other)
    assert None not in sides
    assert verdict(*sides, more_is_better=True) == if_more_is_better
    assert verdict(*sides, more_is_better=False) == if_less_is_better


def _runs(rates: list[float], times: list[float]) -> list[dict[str, Any]]:
    return [{MORE.key: rate, LESS.key: time} for rate, time in zip(rates, times, strict=True)]


def test_sides_are_compared_with_the_first() -> None:
    sides = {
        "stock": _runs([100, 110], [50, 60]),
        "faster": _runs([200, 220], [25, 30]),
        "slower": _runs([50, 55], [55, 56]),
    }
    rows = compare((MORE, LESS), sides)
    assert rows[0]["sides"]["stock"] == {"runs": 2, "median": 105, "low": 100, "high": 110}
    assert rows[0]["beside"]["faster"] == {"ratio": 2.0, "verdict": "ahead"}
    assert rows[1]["beside"]["faster"] == {"ratio": 0.5, "verdict": "ahead"}
    assert rows[0]["beside"]["slower"] == {"ratio": 0.5, "verdict": "behind"}
    assert rows[1]["beside"]["slower"]["verdict"] == "within spread"
    assert goals(rows) == {"faster": True, "slower": False}
    header, lines = table(rows)
    assert header == ["", "stock", "faster", "slower", "faster / stock", "faster is", "slower / stock", "slower is"]
    assert lines[0] == [
        "output tokens/s",
        *("105.0 (100.0 to 110.0)", "210.0 (200.0 to 220.0)", "52.5 (50.0 to 55.0)"),
        *("2.000", "ahead", "0.500", "behind"),
    ]


def test_what_is_unknown_is_left_open() -> None:
    sides: dict[str, Any] = {
        "stock": [{MORE.key: 0}, {MORE.key: 0}],
        "other": [{MORE.key: 1, LESS.key: None}],
        "none": [],
    }
    rows = compare((MORE, LESS), sides)
    assert rows[0]["beside"] == {"other": {"ratio": None, "verdict": None}, "none": None}
    assert rows[1]["sides"] == {"stock": None, "other": None, "none": None}
    assert goals(rows) == {"other": None, "none": None}
    assert table(rows)[1][1] == ["TTFT p50, ms", "-", "-", "-", "-", "-", "-", "-"]


def test_one_side_alone_is_compared_with_none() -> None:
    rows = compare(RUN_METRICS, {"stock": _runs([100, 110], [50, 60])})
    assert goals(rows) == {}
    assert table(rows)[0] == ["", "stock"]


def test_the_goals_and_the_directions() -> None:
    assert {metric.key for metric in METRICS.values() if metric.must} == {"output_tokens_per_s", "ttft_p50_ms"}
    more = {metric.key for metric in METRICS.values() if metric.more_is_better}
    assert more == {"output_tokens_per_s", "requests_per_s", "hit_rate"}
    assert len(METRICS) == len(RUN_METRICS) + len(START_METRICS)


def test_bytes_are_shown_in_gib() -> None:
    rows = compare(START_METRICS, {"stock": [{"peak_bytes": 3 * 2**29}]})
    assert next(line[1] for line in table(rows)[1] if line[0] == "memory at the peak, GiB") == "1.50"
