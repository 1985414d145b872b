# SPDX-License-Identifier: Apache-2.0
"""The figures by which servers are compared, and which direction of each is the better one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    key: str
    """Its field in a run's figures."""
    name: str
    """With its unit."""
    form: str
    """How a value is written."""
    more_is_better: bool = False
    scale: float = 1.0
    """What a value is multiplied by before it is written."""
    must: bool = False
    """Whether the project's goal is to be at least equal here."""


SERVING = (
    Metric("output_tokens_per_s", "output tokens/s", ",.1f", more_is_better=True, must=True),
    Metric("requests_per_s", "requests/s", ",.2f", more_is_better=True),
    Metric("ttft_p50_ms", "TTFT p50, ms", ",.1f", must=True),
    Metric("ttft_p99_ms", "TTFT p99, ms", ",.1f"),
    Metric("inter_token_p50_ms", "inter-token p50, ms", ",.2f"),
    Metric("inter_token_p99_ms", "inter-token p99, ms", ",.2f"),
    Metric("hit_rate", "hit rate", ".1%", more_is_better=True),
)
CHAT = (
    *SERVING[:3],
    Metric("ttft_p90_ms", "TTFT p90, ms", ",.1f"),
    *SERVING[3:5],
    Metric("inter_token_p90_ms", "inter-token p90, ms", ",.2f"),
    SERVING[5],
    Metric("latency_p50_ms", "latency p50, ms", ",.1f"),
    Metric("latency_p99_ms", "latency p99, ms", ",.1f"),
    Metric("goodput_per_s", "goodput, requests/s", ",.2f", more_is_better=True),
    SERVING[6],
)
