# SPDX-License-Identifier: Apache-2.0
"""Open loops, think times, and that no wait is left out of a latency."""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from vt_sglang.chat.client import Answer, ServerLostError
from vt_sglang.chat.dialogues import Fork
from vt_sglang.chat.measure import Limits, summarize
from vt_sglang.chat.pace import Pace
from vt_sglang.chat.play import Played, Request, play
from vt_sglang.chat.script import Script, Turn

SLOW_S = 0.06


def script(turns: int = 1, fork: Fork | None = None) -> Script:
    return Script(tuple(Turn([turn], None) for turn in range(turns)), 0, fork)


class Slow:
    """Takes its time for every request, for any number at once or, as a queue would have it, one after the other."""

    def __init__(self, seconds: float = SLOW_S, *, one_by_one: bool = False, lost_at: int | None = None) -> None:
        self.seconds = seconds
        self.lost_at = lost_at
        self.running = self.most_running = self.requests = 0
        self._turn = asyncio.Semaphore(1 if one_by_one else 1000)

    async def generate(self, input_ids: list[int], output_tokens: int) -> Answer:
        start = time.perf_counter()
        self.requests += 1
        if self.requests == self.lost_at:
            raise ServerLostError("gone")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        async with self._turn:
            await asyncio.sleep(self.seconds)
        self.running -= 1
        took = (time.perf_counter() - start) * 1e3
        return Answer([1] * output_tokens, len(input_ids), 0, ttft_ms=took, latency_ms=took)


def played(server: Slow, scripts: Sequence[Script], pace: Pace, clients: int = 1) -> Played:
    return asyncio.run(play(scripts, server, clients=clients, output_tokens=1, pace=pace))


def ordered(result: Played) -> list[Request]:
    return sorted(result.requests, key=lambda it: (it.dialogue, it.turn))


def test_a_slow_server_does_not_hold_arrivals_up() -> None:
    starts = [0.0, 0.005, 0.01, 0.015]
    server = Slow(0.5)
    result = played(server, [script()] * 4, Pace(starts))
    assert server.most_running == 4  # a closed loop of one client would have had one
    for due, request in zip(starts, ordered(result), strict=True):
        assert request.scheduled_s == due
        assert request.start_s >= due
        assert request.held_s < 0.4  # one after the other: 0.48


def test_the_wait_for_the_cap_counts() -> None:
    """Coordinated omission: with one request in flight, the server answers each as fast as ever, but users wait."""
    server = Slow()
    result = played(server, [script()] * 5, Pace([0.0] * 5, max_in_flight=1))
    assert server.most_running == 1
    requests = sorted(result.requests, key=lambda it: it.start_s)
    for place, request in enumerate(requests):
        assert request.ttft_ms >= (place + 1) * SLOW_S * 1e3 * 0.95
        assert request.ttft_ms == pytest.approx(request.wait_ms + request.answer.ttft_ms)
        assert request.held_s >= place * SLOW_S * 0.95
        assert request.late_ms <= request.wait_ms - place * SLOW_S * 0.95e3
    summary = summarize(result, Limits(ttft_ms=2.5 * SLOW_S * 1e3))
    assert summary.ttft_p99_ms is not None
    assert summary.ttft_p99_ms > 4.5 * SLOW_S * 1e3
    assert summary.within_limits is not None
    assert summary.within_limits <= 2


def test_a_server_that_queues_shows_the_same_without_a_cap() -> None:
    result = played(Slow(one_by_one=True), [script()] * 5, Pace([0.0] * 5))
    assert max(request.ttft_ms for request in result.requests) >= 5 * SLOW_S * 1e3 * 0.95


def test_a_late_generator_is_seen_and_counts() -> None:
    class Blocking(Slow):
        async def generate(self, input_ids: list[int], output_tokens: int) -> Answer:
            time.sleep(0.05)  # keeps the event loop from sending anything else
            return await super().generate(input_ids, output_tokens)

    result = played(Blocking(0.0), [script()] * 4, Pace([0.0] * 4))
    last = max(result.requests, key=lambda it: it.start_s)
    assert last.late_ms >= 3 * 50 * 0.95
    assert last.ttft_ms >= last.late_ms
    summary = summarize(result)
    assert summary.late_max_ms == pytest.approx(last.late_ms)


@pytest.mark.parametrize("starts", [None, [0.0, 0.0]])
def test_users_think_between_turns(starts: list[float] | None) -> None:
    thinks = [[0.0, 0.05, 0.02], [0.0, 0.01, 0.08]]
    result = played(Slow(0.001), [script(3), script(3)], Pace(starts, thinks), clients=2)
    requests = ordered(result)
    for dialogue in range(2):
        turns = requests[3 * dialogue : 3 * dialogue + 3]
        for before, turn in pairwise(turns):
            answered = before.start_s + before.answer.latency_ms / 1e3
            assert turn.scheduled_s - answered >= thinks[dialogue][turn.turn] * 0.99
            assert turn.start_s >= turn.scheduled_s
            # Thinking is no part of what the user waits for.
            assert turn.ttft_ms < thinks[dialogue][turn.turn] * 1e3 + 1e3


def test_a_fork_is_due_when_what_it_forks_from_is_there() -> None:
    result = played(Slow(), [script(2), script(2, Fork(0, 1))], Pace([0.0, 0.001]))
    fork = next(request for request in result.requests if request.dialogue == 1)
    assert fork.scheduled_s >= SLOW_S * 0.95
    assert fork.wait_ms < fork.scheduled_s * 1e3 + 1e3


def test_a_lost_server_ends_an_open_loop_at_once() -> None:
    start = time.perf_counter()
    result = played(
        Slow(0.0, lost_at=2), [script(2), *[script()] * 3], Pace([0.0, 0.01, 30.0, 40.0], [[0, 60.0]] + [[0.0]] * 3)
    )
    assert time.perf_counter() - start < 10
    assert [request.error for request in result.requests] == [None, "gone"]


def test_goodput_needs_both_limits() -> None:
    answers = [
        Answer([1, 2], 10, 0, ttft_ms=10, latency_ms=20, inter_token_ms=[10]),
        Answer([1, 2], 10, 0, ttft_ms=90, latency_ms=95, inter_token_ms=[5]),
        Answer([1, 2, 3], 10, 0, ttft_ms=10, latency_ms=70, inter_token_ms=[2, 58]),
        Answer([1], 10, 0, ttft_ms=10, latency_ms=10),
    ]
    result = Played([Request(0, turn, answer) for turn, answer in enumerate(answers)], seconds=2.0)
    assert summarize(result, Limits(50, 20)).within_limits == 2
    assert summarize(result, Limits(50, 30)).within_limits == 3
    assert summarize(result, Limits(50, None)).goodput_per_s == 1.5
    assert summarize(result, Limits()).within_limits is None
