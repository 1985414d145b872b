# SPDX-License-Identifier: Apache-2.0
"""Figures of one server's run. Times count from when a request was due (vt_sglang/chat/play.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from vt_sglang.chat.play import Played, Request
from vt_sglang.chat.stats import percentile

SHARE_BORDERS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Limits:
    """What a request must keep to be of use to its user; None: anything will do."""

    ttft_ms: float | None = None
    inter_token_ms: float | None = None
    """For the mean time from a token of the answer to the next."""

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.inter_token_ms is not None

    def kept_by(self, request: Request) -> bool:
        gaps = request.answer.inter_token_ms
        return (self.ttft_ms is None or request.ttft_ms <= self.ttft_ms) and (
            self.inter_token_ms is None or not gaps or fmean(gaps) <= self.inter_token_ms
        )


@dataclass(frozen=True)
class Summary:
    """Failed requests are counted as such and left out of every other figure."""

    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    hit_rate: float | None
    """Cached tokens per prompt token."""
    output_tokens: int
    output_tokens_per_s: float | None
    requests_per_s: float | None
    ttft_p50_ms: float | None
    ttft_p90_ms: float | None
    ttft_p99_ms: float | None
    inter_token_p50_ms: float | None
    inter_token_p90_ms: float | None
    inter_token_p99_ms: float | None
    latency_p50_ms: float | None
    latency_p90_ms: float | None
    latency_p99_ms: float | None
    wait_p99_ms: float | None
    """From when a request was due until it was sent; part of TTFT and latency."""
    late_p99_ms: float | None
    """What of the wait was not for the cap on requests in flight but the generator's own lateness."""
    late_max_ms: float | None
    within_limits: int | None
    """Requests that kept the limits; None where none were given."""
    goodput_per_s: float | None
    """The same, a second."""


def summarize(played: Played, limits: Limits | None = None) -> Summary:
    answered = answered_requests(played)
    answers = [request.answer for request in answered]
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    cached_tokens = sum(answer.cached_tokens for answer in answers)
    output_tokens = sum(len(answer.output_ids) for answer in answers)
    ttft = [request.ttft_ms for request in answered]
    inter_token = [gap for answer in answers for gap in answer.inter_token_ms]
    latency = [request.latency_ms for request in answered]
    late = [request.late_ms for request in answered]
    within = sum(map(limits.kept_by, answered)) if limits else None

    def per_second(count: int | None) -> float | None:
        return None if count is None or not played.seconds else count / played.seconds

    return Summary(
        requests=len(answers),
        failed=len(played.requests) - len(answers),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        hit_rate=cached_tokens / prompt_tokens if prompt_tokens else None,
        output_tokens=output_tokens,
        output_tokens_per_s=per_second(output_tokens),
        requests_per_s=per_second(len(answers)),
        ttft_p50_ms=percentile(ttft, 50),
        ttft_p90_ms=percentile(ttft, 90),
        ttft_p99_ms=percentile(ttft, 99),
        inter_token_p50_ms=percentile(inter_token, 50),
        inter_token_p90_ms=percentile(inter_token, 90),
        inter_token_p99_ms=percentile(inter_token, 99),
        latency_p50_ms=percentile(latency, 50),
        latency_p90_ms=percentile(latency, 90),
        latency_p99_ms=percentile(latency, 99),
        wait_p99_ms=percentile([request.wait_ms for request in answered], 99),
        late_p99_ms=percentile(late, 99),
        late_max_ms=max(late, default=None),
        within_limits=within,
        goodput_per_s=per_second(within),
    )


def answered_requests(played: Played) -> list[Request]:
    return [request for request in played.requests if request.error is None]


def by_turn(played: Played) -> list[dict[str, Any]]:
    """Hit rate and TTFT of the dialogues' first turns, second turns, and so on."""
    answered = answered_requests(played)
    turns = sorted({request.turn for request in answered})
    return [{"turn": turn} | _part([it for it in answered if it.turn == turn]) for turn in turns]


def by_cached_share(played: Played) -> list[dict[str, Any]]:
    """TTFT by how much of the prompt was cached: from a share, included, up to another one, not included but for 1."""
    shares = [(it.answer.cached_tokens / it.answer.prompt_tokens, it) for it in answered_requests(played)]
    return [
        {"from_share": low, "to_share": high}
        | _part([it for share, it in shares if low <= share < high or share == high == 1.0])
        for low, high in pairwise(SHARE_BORDERS)
    ]


def _part(requests: Sequence[Request]) -> dict[str, Any]:
    prompt_tokens = sum(request.answer.prompt_tokens for request in requests)
    cached_tokens = sum(request.answer.cached_tokens for request in requests)
    return {
        "requests": len(requests),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "hit_rate": cached_tokens / prompt_tokens if prompt_tokens else None,
        "ttft_p50_ms": percentile([request.ttft_ms for request in requests], 50),
        "ttft_p99_ms": percentile([request.ttft_ms for request in requests], 99),
    }
