# SPDX-License-Identifier: Apache-2.0
"""What repeats of a measurement say: spreads, confidence intervals, and ratios of two servers.

The interval of a mean is Student's: mean +- t(0.975, n - 1) * s / sqrt(n), as Georges, Buytaert and Eeckhout recommend
for benchmarks (Statistically rigorous Java performance evaluation, OOPSLA 2007, section 3.2). It takes repeats for
independent and their means for normal.

Two servers are compared by pairs: in each repeat both got the same work, one soon after the other, so what the machine
did in that repeat cancels out. The ratio is the geometric mean of the pairs' ratios, and its interval is Student's for
the mean of their logarithms, taken back (a paired t test on the log scale). Where a value is zero there is no ratio.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
METHOD = (
    "95 % Student t intervals of the mean over repeats; ratios are geometric means over pairs of runs of the same "
    "repeat, with the t interval of the mean of the log ratios"
)

Verdict = Literal["ahead", "behind", "within noise"]

# Quantiles of Student's t at 0.975, for 1 to 30 degrees of freedom.
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The value below which `percent` % of the values lie, interpolated linearly between neighbours (numpy's
    default, definition 7 of Hyndman and Fan 1996). None if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Spread:
    runs: int
    median: float
    low: float
    high: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return Spread(len(known), statistics.median(known), min(known), max(known)) if known else None


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval; no ends for a single value."""

    mean: float
    low: float | None
    high: float | None


def t_quantile(degrees: int) -> float:
    """Student's t at 0.975: from a table, and above it by the expansion in powers of 1 / degrees of Abramowitz and
    Stegun, 26.7.5, which is right to four places there."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    x = statistics.NormalDist().inv_cdf(0.975)
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    return x + first / degrees + second / degrees**2


def interval(values: Sequence[float]) -> Interval:
    """The mean of some values, at least one, and its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def ratio(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Of (reference, other) pairs: the geometric mean of other / reference, and its 95 % interval. None without pairs,
    or where one of them is not positive."""
    if not pairs or any(value <= 0 for pair in pairs for value in pair):
        return None
    logarithms = interval([math.log(other / reference) for reference, other in pairs])
    ends = (None if end is None else math.exp(end) for end in (logarithms.low, logarithms.high))
    return Interval(math.exp(logarithms.mean), *ends)


def verdict(found: Interval | None, *, more_is_better: bool) -> Verdict | None:
    """What a server with such a ratio to the reference is; None where no interval is known."""
    if found is None or found.low is None or found.high is None:
        return None
    if found.low <= 1 <= found.high:
        return "within noise"
    return "ahead" if (found.mean > 1) is more_is_better else "behind"
