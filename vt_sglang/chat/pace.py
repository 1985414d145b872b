# SPDX-License-Identifier: Apache-2.0
"""When dialogues begin and how long their users think: drawn before anything is played, the same for every server.

In a closed loop a client begins its next dialogue when the last one has ended. In an open loop dialogues begin at times
of their own, however slow the server is; what follows inside a dialogue waits for the answer before it, as people do (a
partly open system: Schroeder, Wierman and Harchol-Balter, Open versus closed: a cautionary tale, NSDI 2006).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from vt_sglang.chat.entries import DialogueError, entries
from vt_sglang.chat.thinking import Thinking

MS = 1e-3


@dataclass(frozen=True)
class Pace:
    starts_s: Sequence[float] | None = None
    """Open loop: when each dialogue is due, in seconds since the run began. None: a closed loop."""
    think_s: Sequence[Sequence[float]] = ()
    """By dialogue and turn: the seconds from the end of the answer before to this turn; empty: none."""
    max_in_flight: int | None = None
    """Open loop: requests that may be at the server at a time; others wait in the generator, and their time counts."""

    def thinks(self, dialogue: int, turn: int) -> float:
        return self.think_s[dialogue][turn] if self.think_s else 0.0


def poisson(rate: float, count: int, seed: str) -> list[float]:
    """Arrival times of a Poisson process of so many arrivals a second, ascending, in seconds; the same for the same
    seed, and in the same proportions for every rate, so that searches over rates compare like with like."""
    drawn = random.Random(f"{seed}, arrivals")
    return list(accumulate(drawn.expovariate(1.0) / rate for _ in range(count)))


def think_times(mean_s: float, thinking: Thinking, turns: Sequence[int], seed: str) -> list[list[float]]:
    """Seconds before each turn; 0 before a dialogue's first.

    Args:
        mean_s: the mean.
        turns: how many turns each dialogue has.
    """
    drawn = random.Random(f"{seed}, think times")

    def think() -> float:
        return mean_s * drawn.expovariate(1.0) if thinking is Thinking.EXPONENTIAL else mean_s

    return [[0.0 if turn == 0 else think() for turn in range(count)] for count in turns]


def timestamps(path: Path, count: int, *, in_order: bool, time_scale: float) -> list[float]:
    """The first arrival times of a trace: of each entry the field `timestamp`, in milliseconds.

    Args:
        count: how many are wanted.
        in_order: keep them in the order of the file, for the dialogues of the same file; else ascending.
        time_scale: how many times faster than in the trace time passes.

    Returns:
        Seconds since the first arrival.

    Raises:
        DialogueError: the file cannot be read, has fewer entries, or has one without a usable timestamp.
    """
    times: list[float] = []
    for entry in entries(path):
        value = entry.value.get("timestamp") if isinstance(entry.value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
            raise DialogueError(f"{entry.place}: no `timestamp` in milliseconds, a number that is not negative")
        times.append(value * MS / time_scale)
        if len(times) == count:
            break
    if len(times) < count:
        raise DialogueError(
            f"{path}: {len(times)} timestamps for {count} dialogues; fewer dialogues (--limit) or another file"
        )
    if not in_order:
        times.sort()
    first = min(times, default=0.0)
    return [time - first for time in times]
