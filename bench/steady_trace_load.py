# SPDX-License-Identifier: Apache-2.0
"""A recorded trace as a load for servers: its prompts in ids that a model knows, its answers' lengths, and its times.

A trace's units are any integers, and a model has a vocabulary. So each id of a prompt is drawn by a hash of all units
up to it: what begins alike still begins alike, and from the first unit that differs on all ids are drawn anew, also
where the units are the same again. Two prompts that differ then share a token more with a chance of one in as many as
the vocabulary has, and two more with the square of that.

What a server answers is its own. So answers are tokens here that nobody asks for again, also where the trace names
them and goes on with them.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vt_sglang.replay import texts, trace
from vt_sglang.replay.request import Request, UnknownTokens
from vt_sglang.replay.work import Work

Words = npt.NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as are _mix's


class TooLongError(ValueError):
    """A request has more tokens than fit."""


@dataclass(frozen=True)
class Recording:
    name: str
    """The trace's file."""
    requests: Sequence[Request]
    """In order of arrival."""
    numbers: Sequence[int]
    """Their places in the trace, from 1."""
    skipped: int
    """Requests left out because of their length."""
    timed: bool
    """Whether the trace says when requests arrived."""

    @property
    def longest_tokens(self) -> int:
        """Of a request with its answer."""
        return max(map(_tokens, self.requests))

    @property
    def seconds(self) -> float:
        """From the first arrival to the last, in the trace."""
        return self._times()[-1]

    def refuse_longer(self, tokens: int, what: str) -> None:
        """TooLongError if a request has more tokens than `what` can have of one."""
        for number, it in zip(self.numbers, self.requests, strict=True):
            if _tokens(it) > tokens:
                raise TooLongError(
                    f"{what}: {max(tokens, 0):,} tokens at most, and request {number} of the trace has {it.prompt:,} "
                    f"and {_answer(it):,} of an answer; give more, or leave longer requests out (--skip-longer)"
                )

    def due_s(self, speed: float) -> list[float]:
        """When each is due if time passes so many times faster, in seconds since the first."""
        return [time / speed for time in self._times()]

    def works(self, vocabulary: int, number: int) -> list[Work]:
        """Prompts of ids below `vocabulary`, and answers of ids below 0, all different.

        Args:
            number: of the pass; the ids of each are others.
        """
        unknown = UnknownTokens()
        found = []
        for it, due in zip(self.requests, self._times(), strict=True):
            ids = spell(it.tokens[: it.prompt], vocabulary, f"{number}, {it.namespace!r}")
            ids += unknown.take(_answer(it) - 1)  # the last one is not recorded
            found.append(Work(ids, it.prompt, it.prompt - 1, it.prompt, due, None))
        return found

    def _times(self) -> list[float]:
        first = self.requests[0].time_s or 0.0
        return [(it.time_s or 0.0) - first for it in self.requests]


def read(path: Path, limit: int | None, longest: int | None) -> Recording:
    """Read a trace of any format that `vt-sglang replay` knows; text counts in bytes.

    Args:
        limit: keep the first so many requests; None: all.
        longest: and of these, only those of at most so many tokens, the answer included.

    Raises:
        ValueError (TraceError): there is no such trace, or nothing is left of it.
    """
    whole = trace.read(path, texts.make(None))
    first = list(enumerate(whole.requests[:limit], start=1))
    kept = [(number, it) for number, it in first if longest is None or _tokens(it) <= longest]
    if not kept:
        raise ValueError(f"--skip-longer {longest}: all requests have more tokens")
    numbers, requests = zip(*kept, strict=True)
    return Recording(path.name, requests, numbers, len(first) - len(kept), whole.timed)


def spell(units: "array[int]", vocabulary: int, root: str) -> "array[int]":
    """Ids from 0 on and below `vocabulary` for units, as many: each a hash of the root and of all units up to it."""
    words = np.frombuffer(units, dtype=np.int64).view(np.uint64)
    places = np.arange(1, len(words) + 1, dtype=np.uint64)
    begin = np.frombuffer(blake2b(root.encode(), digest_size=8).digest(), dtype=np.uint64)
    # A sum of hashes of units and their places differs from where one of them does; all sums are modulo 2**64.
    sums = np.cumsum(_mix(_mix(words) + _STEP * places), dtype=np.uint64) + begin
    return array("q", (_mix(sums) % np.uint64(vocabulary)).astype(np.int64).tobytes())


def _mix(words: Words) -> Words:
    """A permutation of 64-bit words that leaves no bit's influence in one place."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _answer(it: Request) -> int:
    """Tokens; a server generates at least one."""
    return max(len(it.tokens) - it.prompt, 1)


def _tokens(it: Request) -> int:
    return it.prompt + _answer(it)
