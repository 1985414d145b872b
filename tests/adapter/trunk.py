# SPDX-License-Identifier: Apache-2.0
"""A prompt that a running request holds, and another request wants, beside one that takes most of the memory: after
others have left free pages behind, mapped in idle slots, to which a long prefix may be copied."""

import random
from typing import Any

HOLDER, COPIER, LARGE = "holder", "copier", "large"


class Trunk:
    """The script.

    Args:
        options: seed; vocabulary; trunk (tokens that the holder and the copier share); fill, fills (tokens and number
            of the requests before); large (tokens of the prompt beside them); new (tokens that they generate);
            memory_ends (whether there is memory for no page more from then on).
        run: the scheduler's process (`scheduler_run.Run`).
    """

    def __init__(self, options: dict[str, Any], run: Any) -> None:
        self.run, self._options = run, options
        self.seen: set[str] = set()
        self.admitted: list[str] = []
        """Of the copier and what came behind it, in the order in which they were given a slot."""
        self._draw = random.Random(options["seed"])
        self._stage = 0
        self._fillers = [f"filler{number}" for number in range(options["fills"])]
        self._trunk = self._tokens(options["trunk"])

    def waiting_for(self) -> list[str]:
        """What has not come to its end."""
        rids = (self._fillers, [HOLDER], [HOLDER, COPIER, LARGE])[min(self._stage, 3) - 1] if self._stage else []
        return [rid for rid in rids if not self.run.done(rid)]

    def step(self) -> list[Any] | None:
        """What the scheduler receives in this step; None at the end."""
        run, options = self.run, self._options
        if self._stage == 0:
            self._stage = 1
            return [run.request(rid, self._tokens(options["fill"]), new=2) for rid in self._fillers]
        if self._stage == 1:
            if self.waiting_for() or not run.idle:
                return []
            run.flush()
            self._stage = 2
            return [run.request(HOLDER, self._trunk, new=options["new"])]
        if self._stage == 2:
            if HOLDER not in run.requests or len(run.requests[HOLDER].output_ids) < 3:
                return []
            self._stage = 3
            if options["memory_ends"]:
                core = run.scheduler.tree_cache.core
                core.limit_memory(core.usage()["created_pages"])
            return [
                run.request(COPIER, self._trunk + self._tokens(5), new=options["new"]),
                run.request(LARGE, self._tokens(options["large"]), new=4),
            ]
        for rid in (COPIER, LARGE):
            if rid in run.requests and run.requests[rid].req_pool_idx is not None and rid not in self.admitted:
                self.admitted.append(rid)
        return None if not self.waiting_for() and run.idle else []

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(3, self._options["vocabulary"]) for _ in range(count)]
