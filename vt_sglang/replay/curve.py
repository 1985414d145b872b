# SPDX-License-Identifier: Apache-2.0
"""The hit rate over capacity, and its knee."""

import numpy as np

from vt_sglang.replay.distances import Distances

POINTS = 100


def points(distances: Distances, also: list[int]) -> list[tuple[int, int]]:
    """(capacity, hits) in units, ascending: capacities from a thousandth of the largest useful one on, evenly on a
    logarithmic scale, and those of `also`."""
    largest = max(distances.largest, 1)
    capacities = {round(it) for it in np.geomspace(max(largest / 1000, 1), largest, POINTS)} | {0, *also}
    return [(capacity, distances.within(capacity)) for capacity in sorted(capacities)]


def knee(distances: Distances) -> tuple[int, int] | None:
    """(capacity, hits) where the curve is farthest above the straight line from its start to its end, both axes scaled
    to 1: the knee of Satopaa, Albrecht, Irwin and Raghavan, "Finding a 'Kneedle' in a Haystack" (ICDCSW 2011), without
    their smoothing, since the curve is exact. The smallest of several; None where the curve is nowhere above the line.
    """
    if distances.uses == 0:
        return None
    capacities, hits = distances.corners()
    above = hits / hits[-1] - capacities / capacities[-1]
    best = int(above.argmax())
    return (int(capacities[best]), int(hits[best])) if above[best] > 0 else None
