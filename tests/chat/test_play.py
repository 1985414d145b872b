# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import Sequence

import pytest

from vt_sglang.chat.client import Answer, RequestError, ServerLostError
from vt_sglang.chat.dialogues import Fork
from vt_sglang.chat.play import Played, play
from vt_sglang.chat.script import Script, Turn

OUTPUT = [100, 101]


def script(*questions: int, answer: list[int] | None = None, fork: Fork | None = None) -> Script:
    return Script(tuple(Turn([question], answer) for question in questions), 0, fork)


class Model:
    """Answers with the same two tokens; keeps the prompts in the order of their ends."""

    def __init__(self, errors: dict[int, RequestError] | None = None) -> None:
        self.errors = errors or {}
        self.prompts: list[list[int]] = []
        self.running = self.most_running = 0

    async def generate(self, input_ids: list[int], output_tokens: int) -> Answer:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        await asyncio.sleep(0.001 * (input_ids[-1] % 7))
        self.running -= 1
        self.prompts.append(input_ids)
        if error := self.errors.get(input_ids[-1]):
            raise error
        return Answer(output_ids=OUTPUT[:output_tokens], prompt_tokens=len(input_ids))


def played(scripts: Sequence[Script], model: Model, clients: int) -> Played:
    return asyncio.run(play(scripts, model, clients=clients, output_tokens=2))


def places(result: Played) -> list[tuple[int, int]]:
    return [(request.dialogue, request.turn) for request in result.requests]


def test_history_goes_on_with_what_was_generated() -> None:
    model = Model()
    result = played([script(1, 2, 3)], model, 1)
    assert model.prompts == [[1], [1, *OUTPUT, 2], [1, *OUTPUT, 2, *OUTPUT, 3]]
    assert places(result) == [(0, 0), (0, 1), (0, 2)]
    assert result.seconds > 0


def test_history_goes_on_with_given_answers() -> None:
    model = Model()
    played([script(1, 2, answer=[50])], model, 1)
    assert model.prompts == [[1], [1, 50, 2]]


@pytest.mark.parametrize("clients", [1, 3, 20])
def test_so_many_clients_play_at_a_time(clients: int) -> None:
    model = Model()
    result = played([script(index, index + 10) for index in range(1, 9)], model, clients)
    assert model.most_running == min(clients, 8)
    assert sorted(places(result)) == [(index, turn) for index in range(8) for turn in range(2)]


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_forks_wait_for_their_parent_and_go_on_from_there(clients: int) -> None:
    model = Model()
    scripts = [
        script(1, 2, 6),
        script(1, 2, 4, fork=Fork(0, 2)),
        script(1, 5, 3, fork=Fork(0, 1)),
        script(1, 5, 1, fork=Fork(2, 2)),
        script(1, 5, 0, fork=Fork(2, 2)),
    ]
    result = played(scripts, model, clients)
    assert sorted(places(result)) == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 1), (2, 2), (3, 2), (4, 2)]
    after_first, after_second, after_fork = [1, *OUTPUT], [1, *OUTPUT, 2, *OUTPUT], [1, *OUTPUT, 5, *OUTPUT]
    for prompt in ([*after_second, 4], [*after_first, 5], [*after_fork, 3], [*after_fork, 1], [*after_fork, 0]):
        assert model.prompts.count(prompt) == 1


def test_a_failed_request_ends_its_dialogue_and_the_forks_that_need_it() -> None:
    model = Model({2: RequestError("no room")})
    scripts = [script(1, 2, 3), script(1, 2, 4, fork=Fork(0, 2)), script(1, 5, fork=Fork(0, 1)), script(6, 7)]
    result = played(scripts, model, 2)
    assert sorted(places(result)) == [(0, 0), (0, 1), (2, 1), (3, 0), (3, 1)]
    assert [request.error for request in result.requests if request.error] == ["no room"]


def test_a_lost_server_ends_everything() -> None:
    model = Model({2: ServerLostError("gone")})
    result = played([script(1, 2, 3), script(4, 5), script(6)], model, 1)
    assert places(result) == [(0, 0), (0, 1)]


def test_every_request_is_told() -> None:
    told = []
    result = asyncio.run(play([script(1, 2)], Model(), clients=1, output_tokens=2, on_request=told.append))
    assert told == result.requests
