# SPDX-License-Identifier: Apache-2.0
"""Play scripts on one server: by clients that each wait for an answer before they go on, or at times of their own.

Every request has a moment at which it is due: its dialogue's arrival, or the end of the answer before it and the time
that the user thinks. Its times count from there and not from when it was sent, so that a request which had to wait in
the generator, because of the cap on requests in flight or because the generator was late, is as slow as its user finds
it. (To count from the sending would leave out just the requests that a slow server held up: coordinated omission.)
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Protocol

from vt_sglang.chat.client import Answer, RequestError, ServerLostError
from vt_sglang.chat.pace import Pace
from vt_sglang.chat.script import Script


class Generator(Protocol):
    async def generate(self, input_ids: list[int], output_tokens: int) -> Answer:
        """Continue a prompt. RequestError, ServerLostError: there is no answer."""


@dataclass(frozen=True)
class Request:
    """One turn that was played. Failed ones have an error and no answer."""

    dialogue: int
    turn: int
    answer: Answer
    error: str | None = None
    scheduled_s: float = 0.0
    """When it was due, in seconds since the run began."""
    start_s: float = 0.0
    """When it was sent."""
    held_s: float = 0.0
    """How long the cap on requests in flight kept it back."""

    @property
    def wait_ms(self) -> float:
        """From when it was due until it was sent."""
        return (self.start_s - self.scheduled_s) * 1e3

    @property
    def late_ms(self) -> float:
        """What of that is the generator's own fault: all but the wait for the cap."""
        return max(0.0, self.wait_ms - self.held_s * 1e3)

    @property
    def ttft_ms(self) -> float:
        """From when it was due to its first token."""
        return self.wait_ms + self.answer.ttft_ms

    @property
    def latency_ms(self) -> float:
        """From when it was due to its last token."""
        return self.wait_ms + self.answer.latency_ms


@dataclass
class Played:
    requests: list[Request] = field(default_factory=list)
    """In the order in which they ended."""
    seconds: float = 0.0
    """From the run's beginning to the last request's end."""
    began: float = 0.0
    """When the run began, by `time.perf_counter`."""


async def play(
    scripts: Sequence[Script],
    server: Generator,
    *,
    clients: int,
    output_tokens: int,
    pace: Pace | None = None,
    on_request: Callable[[Request], None] = lambda _: None,
) -> Played:
    """Play every script once: in their order as clients become free or, in an open loop, at their times.

    A fork begins when its parent has got as far. Parents come before their forks, so the earliest dialogue in play
    never waits for another. A failed request ends its dialogue, and a server that is lost ends them all.

    Args:
        clients: how many play at the same time in a closed loop.
        pace: open or closed loop, and think times. None: a closed loop without.
    """
    pace = pace or Pace()
    player = _Player(scripts, server, output_tokens, pace, on_request)
    async with asyncio.TaskGroup() as group:
        if pace.starts_s is None:
            for _ in range(min(clients, len(scripts))):
                group.create_task(player.client())
        else:
            for due, index in sorted(zip(pace.starts_s, range(len(scripts)), strict=True)):
                await player.pause_until(due)
                group.create_task(player.dialogue(index, due))
    player.played.seconds = player.now()
    return player.played


class _Player:
    def __init__(
        self,
        scripts: Sequence[Script],
        server: Generator,
        output_tokens: int,
        pace: Pace,
        on_request: Callable[[Request], None],
    ) -> None:
        self.played = Played(began=time.perf_counter())
        self._server = server
        self._output_tokens = output_tokens
        self._pace = pace
        self._on_request = on_request
        self._scripts = scripts
        self._waiting = iter(range(len(scripts)))
        self._lost = asyncio.Event()
        self._cap: AbstractAsyncContextManager[object] = (
            asyncio.Semaphore(pace.max_in_flight) if pace.max_in_flight else nullcontext()
        )
        # The histories that forks wait for, by parent and number of exchanges, and when they were there; None: the
        # parent did not get there.
        self._histories: dict[tuple[int, int], asyncio.Future[tuple[list[int], float] | None]] = {
            (script.fork.parent, script.fork.exchanges): asyncio.get_running_loop().create_future()
            for script in scripts
            if script.fork
        }

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.played.began

    async def pause_until(self, due: float) -> None:
        """Wait for that time, or until the server is lost."""
        if (seconds := due - self.now()) > 0 and not self._lost.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), seconds)

    async def client(self) -> None:
        for index in self._waiting:
            await self.dialogue(index, None)

    async def dialogue(self, index: int, due: float | None) -> None:
        """Play one dialogue. due: when it begins; None: now."""
        try:
            await self._dialogue(index, self._scripts[index], due)
        finally:
            for (parent, _), history in self._histories.items():
                if parent == index and not history.done():
                    history.set_result(None)

    async def _dialogue(self, index: int, script: Script, due: float | None) -> None:
        history: list[int] = []
        if script.fork:
            reached = await self._histories[script.fork.parent, script.fork.exchanges]
            if reached is None:
                return
            history, since = reached
            if due is not None:  # a user cannot fork from what has not been said
                due = max(due, since)
        for number in script.played:
            due = self.now() if due is None else due
            await self.pause_until(due)
            if self._lost.is_set():
                return
            turn = script.turns[number]
            prompt = history + turn.question
            request = await self._request(index, number, prompt, due)
            if request is None:
                return
            self._done(request)
            if request.error is not None:
                return
            history = prompt + (request.answer.output_ids if turn.answer is None else turn.answer)
            now = self.now()
            if reached_here := self._histories.get((index, number + 1)):
                reached_here.set_result((history, now))
            if number + 1 < len(script.turns):
                due = now + self._pace.thinks(index, number + 1)

    async def _request(self, index: int, number: int, prompt: list[int], due: float) -> Request | None:
        """One request, from the moment it may be sent; None if the server was lost before that."""
        ready = self.now()
        async with self._cap:
            if self._lost.is_set():
                return None
            start = self.now()
            held = start - ready
            try:
                answer = await self._server.generate(prompt, self._output_tokens)
            except RequestError as error:
                if isinstance(error, ServerLostError):
                    self._lost.set()
                return Request(index, number, Answer(), str(error), due, start, held)
            return Request(index, number, answer, None, due, start, held)

    def _done(self, request: Request) -> None:
        self.played.requests.append(request)
        self._on_request(request)
