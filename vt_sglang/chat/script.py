# SPDX-License-Identifier: Apache-2.0
"""Dialogues as token ids, cut where the context ends: the same requests for every server.

Every answer has a fixed number of tokens, so the length of each prompt is known before anything is played.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vt_sglang.chat.dialogues import Dialogue, Fork
from vt_sglang.chat.encoding import Encoding

# SGLang keeps a few tokens of the context, and of its memory, for itself: a request that fills either to the last
# token is shortened without a word, or refused.
RESERVED_TOKENS = 8


@dataclass(frozen=True)
class Turn:
    question: list[int]
    """Token ids from the end of the last answer (or from the start) to where this turn's answer begins."""
    answer: list[int] | None
    """Token ids with which the history goes on; None: with those that the server generates."""


@dataclass(frozen=True)
class Script:
    turns: tuple[Turn, ...]
    """From the first one of the dialogue, those included that a fork shares and does not play."""
    lost_turns: int
    """Turns at the end that do not fit the context."""
    fork: Fork | None

    @property
    def first(self) -> int:
        """Index of the first turn that is played."""
        return self.fork.exchanges if self.fork else 0

    @property
    def played(self) -> range:
        """Indexes of the turns that are played."""
        return range(self.first, len(self.turns))


def write(
    dialogues: Iterable[Dialogue], encoding: Encoding, *, output_tokens: int, most_tokens: int, given_answers: bool
) -> list[Script]:
    """Encode dialogues.

    Args:
        output_tokens: tokens that the server generates a turn.
        most_tokens: tokens that a sequence may have on the server, answer included.
        given_answers: go on with the answers of the dialogues, not with the server's.
    """
    return [_script(dialogue, encoding, output_tokens, most_tokens, given_answers) for dialogue in dialogues]


def _script(
    dialogue: Dialogue, encoding: Encoding, output_tokens: int, most_tokens: int, given_answers: bool
) -> Script:
    turns: list[Turn] = []
    history = 0
    for index, exchange in enumerate(dialogue.exchanges):
        question = encoding.following(exchange.user) if index else encoding.opening(dialogue.system, exchange.user)
        if history + len(question) + output_tokens > most_tokens - RESERVED_TOKENS:
            break
        answer = encoding.text(exchange.assistant or "") if given_answers else None
        turns.append(Turn(question, answer))
        history += len(question) + (output_tokens if answer is None else len(answer))
    first = dialogue.fork.exchanges if dialogue.fork else 0
    return Script(tuple(turns), len(dialogue.exchanges) - max(first, len(turns)), dialogue.fork)
