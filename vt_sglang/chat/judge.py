# SPDX-License-Identifier: Apache-2.0
"""Whether a probe of a saturation search kept the limits."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from vt_sglang.chat.measure import Limits, answered_requests, summarize
from vt_sglang.chat.play import Played
from vt_sglang.chat.saturate import Probe
from vt_sglang.chat.settings import Saturation
from vt_sglang.chat.stats import percentile
from vt_sglang.chat.workload import Workload


@dataclass(frozen=True)
class SearchPlan:
    """A saturation search on each server."""

    asked: Saturation
    limits: Limits
    start: float
    whole: bool
    """Whether loads are numbers of clients."""
    probe: Callable[[float, int], Workload]
    """What is played at a load in an attempt."""


def judge(asked: SearchPlan, load: float, attempt: int, workload: Workload, played: Played) -> Probe:
    """Whether a run kept the limits, and why not."""
    percent = asked.asked.percentile
    answered = answered_requests(played)
    ttft = percentile((request.ttft_ms for request in answered), percent)
    gap = percentile((gap for request in answered for gap in request.answer.inter_token_ms), percent)
    reasons = []
    if missing := workload.requests - len(answered):
        reasons.append(f"{missing} of {workload.requests} requests failed or were not played")
    for name, value, limit in (
        ("TTFT", ttft, asked.limits.ttft_ms),
        ("inter-token", gap, asked.limits.inter_token_ms),
    ):
        if limit is not None and value is not None and value > limit:
            reasons.append(f"{name} p{percent:g} {value:.1f} ms is above {limit:g} ms")
    summary = summarize(played, asked.limits)
    figures = {"ttft_ms": ttft, "inter_token_ms": gap, "seconds": played.seconds, "summary": asdict(summary)}
    return Probe(load, attempt, not reasons, tuple(reasons), figures)
