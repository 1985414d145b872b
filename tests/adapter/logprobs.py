# SPDX-License-Identifier: Apache-2.0
"""Compare what two servers thought of every token that they generated."""

from typing import Any, NamedTuple


class Difference(NamedTuple):
    """Log probabilities in nats."""

    tokens: int
    """Compared: those of each request up to where the two chose differently."""
    parted: int
    """Requests in which they did."""
    largest: float
    """Of a chosen token's log probability."""
    largest_gap: float
    """Where they parted: by how much the first server preferred its own choice; infinite where the other's was none of
    its two best."""


def compare(stock: dict[str, Any], other: dict[str, Any]) -> Difference:
    """How far the second result of scheduler_run.py is from the first.

    What comes after requests parted is not compared: it is about other tokens.
    """
    tokens = parted = 0
    largest = largest_gap = 0.0
    assert stock["logprobs"].keys() == other["logprobs"].keys() != set()
    for rid, expected in stock["logprobs"].items():
        got = other["logprobs"][rid]
        assert len(expected) == len(got) > 0, rid
        for mine, theirs in zip(got, expected, strict=True):
            # Each is [chosen token, its log probability, [best two], [their log probabilities]].
            if mine[0] != theirs[0]:
                gap = theirs[3][0] - theirs[3][1] if mine[0] in theirs[2] else float("inf")
                largest_gap = max(largest_gap, gap)
                parted += 1
                break
            largest = max(largest, abs(mine[1] - theirs[1]))
            tokens += 1
    return Difference(tokens, parted, largest, largest_gap)


class ForcedDifference(NamedTuple):
    """Of log probabilities, in nats, of tokens that were forced on both servers."""

    tokens: int
    largest: float
    mean: float


def compare_noted(first: dict[str, Any], second: dict[str, Any]) -> ForcedDifference:
    """How far two results of scheduler_run.py are from each other whose workloads had `noted`."""
    assert first["noted"].keys() == second["noted"].keys() != set()
    found = []
    for rid, expected in first["noted"].items():
        found += [abs(a - b) for a, b in zip(expected, second["noted"][rid], strict=True)]
    return ForcedDifference(len(found), max(found), sum(found) / len(found))
