# SPDX-License-Identifier: Apache-2.0
"""Whether two servers said the same, and whether the second one reused at least as much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from vt_sglang.chat.play import Played, Request

Answered = Mapping[tuple[int, int], Request]
"""Requests that were answered, by dialogue and turn."""


@dataclass(frozen=True)
class Difference:
    """The first place where two servers' outputs part. What follows in that dialogue was asked differently."""

    dialogue: int
    turn: int
    token: int
    """Index in the answer."""
    ids: tuple[int | None, int | None]
    """The token that each server generated; None where it gave no answer."""


@dataclass(frozen=True)
class Comparison:
    requests: int
    """Requests that at least one of the two answered."""
    differing: int
    """How many of them have different outputs."""
    distinct: int
    """How many different outputs the first server gave. With 1 for many requests, equal outputs prove nothing."""
    first_difference: Difference | None
    cached_by_request: bool
    """Whether cached tokens are compared request by request. With several clients at once, what is in the cache when
    a request arrives is a matter of timing, so that only the totals say something."""
    cached_at_least: bool
    """Whether the second server found at least as many prompt tokens in its cache."""


def compare(first: Played, second: Played, *, clients: int | None) -> Comparison:
    """Compare what two servers answered to the same scripts, played by so many clients at once; None: by any number."""
    sides = _answered(first), _answered(second)
    differences = [
        difference for place in sorted(sides[0] | sides[1]) if (difference := _difference(place, *sides)) is not None
    ]
    by_request = clients == 1
    if by_request:
        both = sides[0].keys() & sides[1].keys()
        at_least = all(sides[1][place].answer.cached_tokens >= sides[0][place].answer.cached_tokens for place in both)
    else:
        totals = [sum(request.answer.cached_tokens for request in side.values()) for side in sides]
        at_least = totals[1] >= totals[0]
    return Comparison(
        requests=len(sides[0] | sides[1]),
        differing=len(differences),
        distinct=len({tuple(request.answer.output_ids) for request in sides[0].values()}),
        first_difference=differences[0] if differences else None,
        cached_by_request=by_request,
        cached_at_least=at_least,
    )


def merge(comparisons: Sequence[Comparison]) -> Comparison:
    """What the comparisons of several repeats, at least one, say together; the first difference is that of the first
    repeat that has one."""
    differences = (it.first_difference for it in comparisons)
    return Comparison(
        requests=sum(it.requests for it in comparisons),
        differing=sum(it.differing for it in comparisons),
        distinct=min(it.distinct for it in comparisons),
        first_difference=next((it for it in differences if it is not None), None),
        cached_by_request=comparisons[0].cached_by_request,
        cached_at_least=all(it.cached_at_least for it in comparisons),
    )


def _answered(played: Played) -> dict[tuple[int, int], Request]:
    return {(request.dialogue, request.turn): request for request in played.requests if request.error is None}


def _difference(place: tuple[int, int], first: Answered, second: Answered) -> Difference | None:
    outputs = [side[place].answer.output_ids if place in side else [] for side in (first, second)]
    for token, ids in enumerate(zip_longest(*outputs)):
        if ids[0] != ids[1]:
            return Difference(*place, token, (ids[0], ids[1]))
    return None
