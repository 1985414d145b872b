# SPDX-License-Identifier: Apache-2.0
"""The load of a serving benchmark: conversations of random token ids, all of the same lengths."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from vt_sglang.chat.script import RESERVED_TOKENS, Script, Turn
from vt_sglang.chat.workload import Workload


@dataclass(frozen=True)
class Load:
    """As many conversations as clients, each client waiting for an answer before it goes on. Lengths in tokens."""

    clients: int
    turns: int
    system_tokens: int
    """Of the system prompt that all conversations begin with; 0 for none: then they share nothing."""
    first_tokens: int
    """Of what a client says first, after the system prompt."""
    next_tokens: int
    """Of what it says in each later turn, after the answer."""
    output_tokens: int
    """Of every answer."""

    @property
    def name(self) -> str:
        return f"sharing a system prompt of {self.system_tokens:,} tokens" if self.system_tokens else "sharing nothing"

    @property
    def longest_tokens(self) -> int:
        """Context that a server needs for a whole conversation."""
        said = self.system_tokens + self.first_tokens + (self.turns - 1) * self.next_tokens
        return said + self.turns * self.output_tokens + RESERVED_TOKENS

    def draw(self, vocabulary: int, seed: str) -> Workload:
        """Conversations of ids below `vocabulary`; the same for the same seed, and for another one all others."""
        drawn = random.Random(f"{seed}, {self}")

        def ids(count: int) -> list[int]:
            return [drawn.randrange(vocabulary) for _ in range(count)]

        system = ids(self.system_tokens)
        later = range(self.turns - 1)
        scripts = [
            Script(
                turns=(
                    Turn(system + ids(self.first_tokens), answer=None),
                    *(Turn(ids(self.next_tokens), answer=None) for _ in later),
                ),
                lost_turns=0,
                fork=None,
            )
            for _ in range(self.clients)
        ]
        return Workload(scripts, self.clients, self.output_tokens)


def vocabulary(model: Path) -> int:
    """Ids that the model knows, as its config.json says. ValueError if there is none that does."""
    config = model / "config.json"
    if not config.is_file():
        raise ValueError(f"--model takes a folder with a config.json, and there is no {config}")
    try:
        return int(json.loads(config.read_text())["vocab_size"])
    except (KeyError, ValueError):
        raise ValueError(f"--model: {config} has no vocab_size") from None
