# SPDX-License-Identifier: Apache-2.0
"""Long generations from prompts that share beginnings, with the log probabilities of what was chosen and of the next
best."""

import random
from typing import Any


class Generations:
    """Requests that all generate as much, and nothing else.

    Args:
        options: seed, requests, new (tokens to generate), longest_prompt, vocabulary, every (steps between a request
            and the next; 0: all at once), shares (whether they share beginnings), logprobs (whether they ask for
            them; SGLang mixes no batch for which they are asked).
        run: the scheduler's process (`scheduler_run.Run`).
    """

    def __init__(self, options: dict[str, Any], run: Any) -> None:
        self.run = run
        self.seen: set[str] = set()
        draw = random.Random(options["seed"])
        shared = [draw.randrange(3, options["vocabulary"]) for _ in range(options["longest_prompt"])]
        self._new = options["new"]
        self._prompts = {}
        for number in range(options["requests"]):
            own = [draw.randrange(3, options["vocabulary"]) for _ in range(draw.randint(1, 40))]
            cut = draw.randint(0, options["longest_prompt"] - len(own))
            start = shared[:cut] if options.get("shares", True) else draw.choices(shared, k=cut)
            self._prompts[f"long{number}"] = start + own
        self._every, self._logprobs = options.get("every", 0), options.get("logprobs", True)
        self._coming, self._steps = list(self._prompts), 0

    def waiting_for(self) -> list[str]:
        """What has not come to its end."""
        return [rid for rid in self._prompts if not self.run.done(rid)]

    def step(self) -> list[Any] | None:
        """What the scheduler receives in this step; None at the end."""
        self._steps += 1
        if not self._coming:
            return [] if self.waiting_for() or not self.run.idle else None
        count = len(self._coming) if self._every == 0 else (self._steps - 1) % self._every == 0
        rids, self._coming = self._coming[:count], self._coming[count:]
        return [self.run.request(rid, self._prompts[rid], new=self._new, logprobs=self._logprobs) for rid in rids]
