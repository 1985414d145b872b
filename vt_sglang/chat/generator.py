# SPDX-License-Identifier: Apache-2.0
"""Made-up dialogues of chosen lengths: shared system prompts, forks of other dialogues, and results of tools."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from vt_sglang.chat.dialogues import Dialogue, Exchange, Fork

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Shape:
    """What is generated. Lengths are in tokens of the model's own encoding, reached to within a word."""

    num_dialogues: int
    turns: int
    system_tokens: int
    """Length of the system prompt; 0 for none."""
    user_tokens: int
    """Mean length of what a user says; each is between half and one and a half of it."""
    forks: float
    """Share of dialogues that fork from an earlier one."""
    seed: int
    """Dialogues of equal shape are equal; another seed makes others."""
    system_prompts: int = 1
    """Different system prompts, which dialogues have by turns; a fork has its parent's."""
    tool_tokens: int = 0
    """Mean length of a tool's result, or a document, that follows what a user says; half to one and a half of it."""
    tool_share: float = 0.25
    """Share of turns that have one, where `tool_tokens` is not 0."""


def generate(shape: Shape, count_tokens: Callable[[str], int]) -> list[Dialogue]:
    """Draw dialogues.

    Args:
        count_tokens: tokens of a piece of text.
    """
    drawn = random.Random(shape.seed)
    # What not every shape has is drawn from other generators, and changes nothing in the rest.
    more_systems, tools = (random.Random(f"{shape.seed}, {what}") for what in ("system prompts", "tools"))
    systems = [_text(drawn, shape.system_tokens, count_tokens) or None]
    systems += [_text(more_systems, shape.system_tokens, count_tokens) for _ in range(shape.system_prompts - 1)]

    def about(tokens: int, source: random.Random) -> str:
        return _text(source, source.randint(max(1, tokens // 2), max(1, tokens * 3 // 2)), count_tokens)

    def exchange() -> Exchange:
        user = about(shape.user_tokens, drawn)
        if shape.tool_tokens and tools.random() < shape.tool_share:
            user += f"\n\n{about(shape.tool_tokens, tools)}"
        return Exchange(user)

    dialogues: list[Dialogue] = []
    # Forks are spread evenly, so that a share of 1/4 is one in four at any number of dialogues.
    for index in range(shape.num_dialogues):
        due = int((index + 1) * shape.forks) > int(index * shape.forks)
        fork = _fork(drawn, dialogues) if due else None
        system = dialogues[fork.parent].system if fork else systems[index % len(systems)]
        shared = dialogues[fork.parent].exchanges[: fork.exchanges] if fork else ()
        own = tuple(exchange() for _ in range(shape.turns - len(shared)))
        dialogues.append(Dialogue(system, shared + own, fork))
    return dialogues


def _fork(drawn: random.Random, dialogues: list[Dialogue]) -> Fork | None:
    """A place between two exchanges that an earlier dialogue has itself, None if there is no such place."""
    places = [
        Fork(parent, exchanges)
        for parent, dialogue in enumerate(dialogues)
        for exchanges in range((dialogue.fork.exchanges if dialogue.fork else 0) + 1, len(dialogue.exchanges))
    ]
    return drawn.choice(places) if places else None


def _text(drawn: random.Random, tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Words of at least so many tokens, and no word more."""
    words: list[str] = []
    total = 0
    for position in count():
        if total >= tokens:
            break
        word = "".join(drawn.choice(CONSONANTS) + drawn.choice(VOWELS) for _ in range(drawn.randint(1, 3)))
        words.append(word if position == 0 else f" {word}")
        total += count_tokens(words[-1])
    return "".join(words)
