# SPDX-License-Identifier: Apache-2.0
import pytest

from vt_sglang.chat.client import Answer
from vt_sglang.chat.compare import Difference, compare
from vt_sglang.chat.play import Played, Request


def played(*answers: tuple[int, int, list[int], int], failed: tuple[int, int] | None = None) -> Played:
    """From (dialogue, turn, output ids, cached tokens)."""
    requests = [Request(d, t, Answer(output_ids=ids, cached_tokens=cached)) for d, t, ids, cached in answers]
    return Played(requests + ([Request(*failed, Answer(), "no")] if failed else []))


SAME = played((0, 0, [1, 2], 0), (0, 1, [3, 4], 9), (1, 0, [5, 6], 8))


def test_order_of_ending_does_not_matter() -> None:
    other = Played(SAME.requests[::-1])
    comparison = compare(SAME, other, clients=2)
    assert comparison.first_difference is None
    assert (comparison.requests, comparison.differing, comparison.distinct) == (3, 0, 3)


def test_answers_that_are_all_the_same_are_told_apart() -> None:
    mute = played((0, 0, [1, 2], 0), (0, 1, [1, 2], 9), (1, 0, [1, 2], 8))
    assert compare(mute, mute, clients=1).distinct == 1


@pytest.mark.parametrize(
    ("other", "difference", "differing"),
    [
        (played((1, 0, [7, 6], 8), (0, 1, [3, 9], 9), (0, 0, [1, 2], 0)), Difference(0, 1, 1, (4, 9)), 2),
        (played((1, 0, [5], 8), (0, 1, [3, 4], 9), (0, 0, [1, 2], 0)), Difference(1, 0, 1, (6, None)), 1),
        (played((0, 0, [1, 2], 0), failed=(0, 1)), Difference(0, 1, 0, (3, None)), 2),
        (Played(SAME.requests + played((1, 1, [8], 0)).requests), Difference(1, 1, 0, (None, 8)), 1),
    ],
)
def test_first_difference(other: Played, difference: Difference, differing: int) -> None:
    comparison = compare(SAME, other, clients=2)
    assert comparison.first_difference == difference
    assert comparison.differing == differing


@pytest.mark.parametrize(
    ("cached", "clients", "at_least"),
    [((0, 9, 8), 1, True), ((1, 9, 8), 1, True), ((5, 9, 7), 1, False), ((5, 9, 7), 2, True), ((0, 9, 7), 2, False)],
)
def test_cached_tokens(cached: tuple[int, int, int], clients: int, at_least: bool) -> None:
    other = played((0, 0, [1, 2], cached[0]), (0, 1, [3, 4], cached[1]), (1, 0, [5, 6], cached[2]))
    comparison = compare(SAME, other, clients=clients)
    assert comparison.cached_at_least is at_least
    assert comparison.cached_by_request is (clients == 1)
