# SPDX-License-Identifier: Apache-2.0
"""Reuse distances against an LRU stack, and the curve and knee that come of them."""

import numpy as np
import pytest
from replay_reference import longest_common_prefixes, random_requests, stack_distances

from vt_sglang.replay import caches, curve, distances, work
from vt_sglang.replay.distances import Distances


@pytest.mark.parametrize("seed", range(6))
def test_equal_an_lru_stack(seed: int) -> None:
    works = work.prepare(random_requests(seed, 60), 1)
    found = distances.measure(works)
    plain, distinct = stack_distances(works)
    assert found.uses == len(plain) == sum(longest_common_prefixes(works))
    assert found.distinct == distinct
    assert found.largest == max(plain)
    for capacity in range(found.largest + 2):
        assert found.within(capacity) == sum(it <= capacity for it in plain)
    assert sum(uses for _, uses in found.histogram()) == len(plain)
    above = 0
    for bound, uses in found.histogram():
        assert uses == sum(above < it <= bound for it in plain)
        above = bound


def test_corners_are_the_curve() -> None:
    found = distances.measure(work.prepare(random_requests(2, 60), 1))
    capacities, hits = found.corners()
    assert [found.within(int(it)) for it in capacities] == hits.tolist()
    every = np.arange(found.largest + 1)
    assert np.interp(every, capacities, hits).tolist() == [found.within(int(it)) for it in every]


def test_the_core_is_close_to_the_curve() -> None:
    """Whole nodes are evicted and not single tokens: so it finds no more than a little less."""
    works = work.prepare(random_requests(4, 150), 1)
    found = distances.measure(works)
    made = caches.Shape(4, 4, 4, 1000)
    for capacity in (60, 100, 200, found.largest):
        matched = sum(caches.play(caches.make(works, made, capacity), works, made).matched)
        assert abs(matched - found.within(capacity)) < 0.1 * found.uses


def test_the_knee_is_where_the_curve_is_farthest_above_the_line() -> None:
    # 90 uses up to 100, the other 10 up to 1,000.
    found = Distances(np.array([10, 990]), np.array([90, 10]), 1000)
    assert curve.knee(found) == (100, 90)


def test_no_knee_where_nothing_is_found_or_the_curve_is_below_the_line() -> None:
    nothing = np.empty(0, dtype=np.int64)
    assert curve.knee(Distances(nothing, nothing, 5)) is None
    assert curve.knee(Distances(np.array([90]), np.array([10]), 100)) is None
    assert Distances(nothing, nothing, 5).histogram() == []


def test_points_ascend_and_hold_what_was_asked_for() -> None:
    found = distances.measure(work.prepare(random_requests(2, 60), 1))
    points = curve.points(found, [7, 50_000])
    capacities = [capacity for capacity, _ in points]
    assert capacities == sorted(set(capacities))
    assert {0, 7, found.largest, 50_000} <= set(capacities)
    assert points[-1] == (50_000, found.uses)
