# SPDX-License-Identifier: Apache-2.0
"""What the serving benchmark asks of a server."""

from dataclasses import replace

import pytest
from serve_load import Load

LOAD = Load(clients=5, turns=3, system_tokens=20, first_tokens=12, next_tokens=7, output_tokens=4)
VOCABULARY = 50_000


def test_lengths() -> None:
    workload = LOAD.draw(VOCABULARY, "seed")
    assert (workload.clients, workload.output_tokens, workload.requests, workload.lost_turns) == (5, 4, 15, 0)
    for script in workload.scripts:
        assert [len(turn.question) for turn in script.turns] == [32, 7, 7]
        assert all(turn.answer is None for turn in script.turns)  # the history goes on with what the server says
        assert all(0 <= token < VOCABULARY for turn in script.turns for token in turn.question)


def test_all_tokens_of_a_small_vocabulary_are_drawn() -> None:
    tokens = {token for script in LOAD.draw(3, "seed").scripts for turn in script.turns for token in turn.question}
    assert tokens == {0, 1, 2}


@pytest.mark.parametrize("system_tokens", [0, 20])
def test_what_conversations_share_is_the_system_prompt(system_tokens: int) -> None:
    load = replace(LOAD, system_tokens=system_tokens)
    first = [script.turns[0].question for script in load.draw(VOCABULARY, "seed").scripts]
    assert len({tuple(question[:system_tokens]) for question in first}) == 1
    assert len({question[system_tokens] for question in first}) == load.clients
    assert str(system_tokens or "nothing") in load.name


def test_equal_seeds_draw_the_same_and_others_share_not_even_the_system_prompt() -> None:
    assert LOAD.draw(VOCABULARY, "run 0") == LOAD.draw(VOCABULARY, "run 0")
    first, second = (LOAD.draw(VOCABULARY, seed).scripts[0].turns[0].question for seed in ("run 0", "run 1"))
    assert first[0] != second[0]


def test_the_context_that_a_conversation_needs() -> None:
    assert LOAD.longest_tokens - replace(LOAD, turns=2).longest_tokens == 7 + 4
    assert LOAD.longest_tokens == 8 + 20 + 12 + 2 * 7 + 3 * 4
