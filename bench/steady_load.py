# SPDX-License-Identifier: Apache-2.0
"""The load of bench/steady.py: conversations that are played in several passes, every pass with new ones."""

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from serve_load import Load


@dataclass(frozen=True)
class Steady:
    """Conversations of one shape, as many as `load.clients` of them with a request at one time."""

    load: Load
    """Clients and lengths; the system prompt is the same in all passes."""
    conversations: int
    """Of a pass."""
    random_order: bool
    """Whether a client that is free goes on with any conversation that waits for its next turn; else it stays with its
    own until that ends, and takes a new one then."""
    passes: int
    warm: int
    """Passes, the first ones, that are not measured: they bring memory into the state that it keeps."""
    seed: int

    @property
    def requests(self) -> int:
        """Of a pass."""
        return self.conversations * self.load.turns

    @property
    def conversation_tokens(self) -> int:
        """Of a conversation at its end, without the system prompt."""
        load = self.load
        return load.first_tokens + (load.turns - 1) * load.next_tokens + load.turns * load.output_tokens

    @property
    def working_set_tokens(self) -> int:
        """Of all conversations of a pass, the system prompt once."""
        return self.load.system_tokens + self.conversations * self.conversation_tokens

    @property
    def longest_tokens(self) -> int:
        """Of a conversation at its end."""
        return self.load.system_tokens + self.conversation_tokens

    def prompt_tokens(self, turn: int) -> int:
        """Of the prompt of a turn, counted from 0."""
        load = self.load
        return load.system_tokens + load.first_tokens + turn * (load.output_tokens + load.next_tokens)

    def system_prompt(self, vocabulary: int) -> list[int]:
        """The ids that every conversation begins with."""
        drawn = random.Random(f"{self.seed}, system prompt")
        return [drawn.randrange(vocabulary) for _ in range(self.load.system_tokens)]

    def said(self, vocabulary: int, number: int, conversation: int) -> Iterator[list[int]]:
        """What a client says in each turn of a conversation of a pass, the system prompt aside."""
        drawn = random.Random(f"{self.seed}, pass {number}, conversation {conversation}")
        for turn in range(self.load.turns):
            count = self.load.next_tokens if turn else self.load.first_tokens
            yield [drawn.randrange(vocabulary) for _ in range(count)]

    def whole(self, vocabulary: int, number: int, conversation: int) -> "array[int]":
        """A whole conversation, with answers drawn as well, for where no model is."""
        drawn = random.Random(f"{self.seed}, pass {number}, answers to {conversation}")
        ids = array("q", self.system_prompt(vocabulary))
        for said in self.said(vocabulary, number, conversation):
            ids.extend(said)
            ids.extend(drawn.randrange(vocabulary) for _ in range(self.load.output_tokens))
        return ids


@dataclass(frozen=True)
class Turn:
    """What a scheduler is asked for."""

    kind: str
    """Of requests that are told apart."""
    ids: "array[int]"
    """The prompt, and at least all but the last of the answer's tokens."""
    prompt: int
    """Tokens."""
    output: int
    """Tokens, at least 1."""
    namespace: str | None = None


class Source(Protocol):
    """Where requests come from; a number names a sequence of them."""

    def first(self) -> int | None:
        """What a client begins with; None if nothing is left."""

    def after(self, number: int) -> int | None:
        """What a client goes on with, that was answered; None if it is done."""

    def request(self, number: int) -> Turn:
        """The next one of a sequence."""


class Order:
    """Which conversation's next turn a client asks for. It follows from the seed and from the order of the calls."""

    def __init__(self, steady: Steady, number: int) -> None:
        """number: of the pass."""
        self._turns = steady.load.turns
        self._random = random.Random(f"{steady.seed}, pass {number}, order") if steady.random_order else None
        self._waiting = list(range(steady.conversations))
        if self._random is None:
            self._waiting.reverse()
        self._played = [0] * steady.conversations

    def first(self) -> int | None:
        """A conversation for a client that begins; None if none is left."""
        if not self._waiting:
            return None
        if self._random is not None:
            index = self._random.randrange(len(self._waiting))
            self._waiting[index], self._waiting[-1] = self._waiting[-1], self._waiting[index]
        return self._waiting.pop()

    def after(self, conversation: int) -> int | None:
        """The next one for the client that was answered in this one; None if the client is done."""
        self._played[conversation] += 1
        ended = self._played[conversation] == self._turns
        if self._random is None and not ended:
            return conversation
        if not ended:
            self._waiting.append(conversation)
        return self.first()

    def turn(self, conversation: int) -> int:
        """The turn that a conversation comes to, from 0."""
        return self._played[conversation]


class Played(Order):
    """A pass, with the answers drawn. Its kinds: `new`, `next`, and `last turn`."""

    def __init__(self, steady: Steady, number: int, vocabulary: int) -> None:
        super().__init__(steady, number)
        self._steady = steady
        self._conversations = [steady.whole(vocabulary, number, it) for it in range(steady.conversations)]

    def request(self, number: int) -> Turn:
        """The next turn of a conversation."""
        turn, load = self.turn(number), self._steady.load
        kind = "new" if turn == 0 else "last turn" if turn == load.turns - 1 else "next"
        return Turn(kind, self._conversations[number], self._steady.prompt_tokens(turn), load.output_tokens)
