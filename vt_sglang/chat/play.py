# SPDX-License-Identifier: Apache-2.0
"""Play scripts on one server with several clients at once, each of them waiting for an answer before it goes on."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vt_sglang.chat.client import Answer, RequestError, ServerLostError
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


@dataclass
class Played:
    requests: list[Request] = field(default_factory=list)
    """In the order in which they ended."""
    seconds: float = 0.0
    """From the first request's start to the last one's end."""


async def play(
    scripts: Sequence[Script],
    server: Generator,
    *,
    clients: int,
    output_tokens: int,
    on_request: Callable[[Request], None] = lambda _: None,
) -> Played:
    """Play every script once, in their order as clients become free.

    A fork begins when its parent has got as far. Parents come before their forks, so the earliest dialogue in play
    never waits for another. A failed request ends its dialogue, and a server that is lost ends them all.
    """
    player = _Player(scripts, server, output_tokens, on_request)
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(clients, len(scripts))):
            group.create_task(player.client())
    player.played.seconds = time.perf_counter() - start
    return player.played


class _Player:
    def __init__(
        self,
        scripts: Sequence[Script],
        server: Generator,
        output_tokens: int,
        on_request: Callable[[Request], None],
    ) -> None:
        self.played = Played()
        self._server = server
        self._output_tokens = output_tokens
        self._on_request = on_request
        self._waiting = iter(list(enumerate(scripts)))
        self._lost = False
        # The histories that forks wait for, by parent and number of exchanges; None: the parent did not get there.
        self._histories: dict[tuple[int, int], asyncio.Future[list[int] | None]] = {
            (script.fork.parent, script.fork.exchanges): asyncio.get_running_loop().create_future()
            for script in scripts
            if script.fork
        }

    async def client(self) -> None:
        for index, script in self._waiting:
            try:
                await self._dialogue(index, script)
            finally:
                for (parent, _), history in self._histories.items():
                    if parent == index and not history.done():
                        history.set_result(None)

    async def _dialogue(self, index: int, script: Script) -> None:
        history: list[int] | None = []
        if script.fork:
            history = await self._histories[script.fork.parent, script.fork.exchanges]
        if history is None:
            return
        for number in script.played:
            if self._lost:
                return
            turn = script.turns[number]
            prompt = history + turn.question
            try:
                answer = await self._server.generate(prompt, self._output_tokens)
            except RequestError as error:
                self._lost |= isinstance(error, ServerLostError)
                self._done(Request(index, number, Answer(), str(error)))
                return
            self._done(Request(index, number, answer))
            history = prompt + (answer.output_ids if turn.answer is None else turn.answer)
            if reached := self._histories.get((index, number + 1)):
                reached.set_result(history)

    def _done(self, request: Request) -> None:
        self.played.requests.append(request)
        self._on_request(request)
