# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from vt_sglang.chat.generator import Shape, generate

SHAPE = Shape(num_dialogues=24, turns=4, system_tokens=100, user_tokens=40, forks=0.25, seed=7)
LONGEST_WORD = len(" bababa")


def test_equal_arguments_give_equal_dialogues_and_another_seed_gives_others() -> None:
    assert generate(SHAPE, len) == generate(SHAPE, len)
    assert generate(SHAPE, len) != generate(replace(SHAPE, seed=8), len)


def test_shape() -> None:
    dialogues = generate(SHAPE, len)
    assert len(dialogues) == 24
    assert {len(dialogue.exchanges) for dialogue in dialogues} == {4}
    assert len({dialogue.system for dialogue in dialogues}) == 1
    assert 100 <= len(dialogues[0].system or "") < 100 + LONGEST_WORD
    lengths = [len(exchange.user) for dialogue in dialogues for exchange in dialogue.exchanges]
    assert 20 <= min(lengths) < 30
    assert 50 < max(lengths) < 60 + LONGEST_WORD


def test_no_system_prompt() -> None:
    assert generate(replace(SHAPE, system_tokens=0), len)[0].system is None


@pytest.mark.parametrize(("share", "forks"), [(0.0, 0), (0.25, 6), (0.5, 12), (1.0, 23)])
def test_number_of_forks(share: float, forks: int) -> None:
    # With a share of 1, the first dialogue has nothing to fork from.
    dialogues = generate(replace(SHAPE, forks=share), len)
    assert sum(dialogue.fork is not None for dialogue in dialogues) == forks


def test_forks_share_exactly_a_prefix() -> None:
    dialogues = generate(replace(SHAPE, forks=0.75), len)
    forked = [(index, dialogue) for index, dialogue in enumerate(dialogues) if dialogue.fork]
    assert any(dialogues[dialogue.fork.parent].fork for _, dialogue in forked if dialogue.fork)  # forks of forks
    for index, dialogue in forked:
        assert dialogue.fork is not None
        shared, parent = dialogue.fork.exchanges, dialogues[dialogue.fork.parent]
        assert dialogue.fork.parent < index
        assert 1 <= shared < SHAPE.turns
        assert dialogue.exchanges[:shared] == parent.exchanges[:shared]
        assert dialogue.exchanges[shared] != parent.exchanges[shared]
        # The parent itself plays the turn before the fork, so its history is there to fork from.
        assert parent.fork is None or parent.fork.exchanges < shared


def test_a_dialogue_of_one_turn_has_no_middle_to_fork_from() -> None:
    assert not any(dialogue.fork for dialogue in generate(replace(SHAPE, turns=1, forks=1.0), len))


def test_several_system_prompts_by_turns_and_a_fork_has_its_parents() -> None:
    dialogues = generate(replace(SHAPE, system_prompts=3), len)
    assert len({dialogue.system for dialogue in dialogues}) == 3
    for index, dialogue in enumerate(dialogues):
        expected = dialogues[dialogue.fork.parent if dialogue.fork else index % 3]
        assert dialogue.system == expected.system
    assert dialogues[0].system == generate(SHAPE, len)[0].system


def test_results_of_tools_are_added_and_change_nothing_else() -> None:
    plain = generate(SHAPE, len)
    tools = generate(replace(SHAPE, tool_tokens=300, tool_share=0.5), len)
    pairs = [
        (a.user, b.user)
        for one, two in zip(plain, tools, strict=True)
        for a, b in zip(one.exchanges, two.exchanges, strict=True)
    ]
    longer = [len(with_tool) - len(without) for without, with_tool in pairs if with_tool != without]
    assert all(with_tool.startswith(without) for without, with_tool in pairs)
    assert 0.3 < len(longer) / len(pairs) < 0.7
    assert min(longer) >= 150
    assert max(longer) < 450 + LONGEST_WORD + 2


def test_more_dialogues_begin_with_the_same_ones() -> None:
    assert generate(replace(SHAPE, num_dialogues=30), len)[:24] == generate(SHAPE, len)
