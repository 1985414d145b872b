# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from vt_sglang.chat.client import Answer
from vt_sglang.chat.measure import summarize
from vt_sglang.chat.play import Played, Request
from vt_sglang.chat.stats import percentile


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_percentile_is_numpys(count: int, percent: float) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    assert percentile(values.tolist(), percent) == pytest.approx(np.percentile(values, percent))


def test_percentile_of_known_values() -> None:
    assert percentile([40, 10, 30, 20], 50) == 25
    assert percentile([10, 20], 99) == pytest.approx(19.9)
    assert percentile([], 50) is None


def test_summary() -> None:
    answers = [
        Answer([1, 2, 3], prompt_tokens=100, cached_tokens=0, ttft_ms=30, latency_ms=50, inter_token_ms=[4, 16]),
        Answer([4, 5], prompt_tokens=300, cached_tokens=299, ttft_ms=10, latency_ms=20, inter_token_ms=[10]),
    ]
    requests = [Request(0, turn, answer) for turn, answer in enumerate(answers)]
    summary = summarize(Played([*requests, Request(1, 0, Answer(), "failed")], seconds=2.0))
    assert (summary.requests, summary.failed) == (2, 1)
    assert (summary.prompt_tokens, summary.cached_tokens, summary.hit_rate) == (400, 299, 299 / 400)
    assert (summary.output_tokens, summary.output_tokens_per_s) == (5, 2.5)
    assert (summary.ttft_p50_ms, summary.ttft_p99_ms) == (20, pytest.approx(29.8))
    assert (summary.inter_token_p50_ms, summary.inter_token_p99_ms) == (10, pytest.approx(15.88))


def test_summary_of_nothing_has_no_rates() -> None:
    summary = summarize(Played([Request(0, 0, Answer(), "failed")], seconds=1.0))
    assert (summary.hit_rate, summary.ttft_p50_ms, summary.inter_token_p99_ms) == (None, None, None)
