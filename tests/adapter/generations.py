# SPDX-License-Identifier: Apache-2.0
"""Long generations from prompts that share beginnings, with the log probabilities of what was chosen and of the next
best."""

import random
from typing import Any


class Generations:
    """All requests at once, and nothing else.

    Args:
        options: seed, requests, new (tokens to generate), longest_prompt, vocabulary; logprobs: False for none, as
            SGLang mixes no batch for which they are asked.
        run: the scheduler's process (`scheduler_run.Run`).
    """

    def __init__(self, options: dict[str, Any], run: Any) -> None:
        self.run = run
        self.seen: set[str] = set()
        draw = random.Random(options["seed"])
        shared = [draw.randrange(3, options["vocabulary"]) for _ in range(options["longest_prompt"])]
        self._new, self._logprobs = options["new"], options.get("logprobs", True)
        self._prompts = {}
        for number in range(options["requests"]):
            own = [draw.randrange(3, options["vocabulary"]) for _ in range(draw.randint(1, 40))]
            cut = draw.randint(0, options["longest_prompt"] - len(own))
            self._prompts[f"long{number}"] = shared[:cut] + own
        self._started = False

    def waiting_for(self) -> list[str]:
        """What has not come to its end."""
        return [rid for rid in self._prompts if not self.run.done(rid)]

    def step(self) -> list[Any] | None:
        """What the scheduler receives in this step; None at the end."""
        if not self._started:
            self._started = True
            return [
                self.run.request(rid, prompt, new=self._new, logprobs=self._logprobs)
                for rid, prompt in self._prompts.items()
            ]
        return [] if self.waiting_for() or not self.run.idle else None
