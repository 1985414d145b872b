# SPDX-License-Identifier: Apache-2.0
"""Figures of one server's run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vt_sglang.chat.play import Played


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
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    inter_token_p50_ms: float | None
    inter_token_p99_ms: float | None


def summarize(played: Played) -> Summary:
    answers = [request.answer for request in played.requests if request.error is None]
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    cached_tokens = sum(answer.cached_tokens for answer in answers)
    output_tokens = sum(len(answer.output_ids) for answer in answers)
    ttft: Sequence[float] = [answer.ttft_ms for answer in answers]
    inter_token = [gap for answer in answers for gap in answer.inter_token_ms]
    return Summary(
        requests=len(answers),
        failed=len(played.requests) - len(answers),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        hit_rate=cached_tokens / prompt_tokens if prompt_tokens else None,
        output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / played.seconds if played.seconds else None,
        ttft_p50_ms=percentile(ttft, 50),
        ttft_p99_ms=percentile(ttft, 99),
        inter_token_p50_ms=percentile(inter_token, 50),
        inter_token_p99_ms=percentile(inter_token, 99),
    )
