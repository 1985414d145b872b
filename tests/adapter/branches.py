# SPDX-License-Identifier: Apache-2.0
"""Requests that begin to share only while they run: samples of one prompt, and forks of one that is generating."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from vt_sglang._core import SharePlan


class Branches:
    """One case after the other, and what tree-aware decode would save in each.

    Args:
        options: seed, prompt (tokens), samples, outputs (of the request that is forked, at that time), vocabulary.
        run: the scheduler's process (`scheduler_run.Run`).
    """

    def __init__(self, options: dict[str, Any], run: Any) -> None:
        self.run, self._options = run, options
        self.seen: set[str] = set()
        self.saved: dict[str, list[int]] = {}
        """By case: tokens that each plan saves, in the order of the steps, without repetitions."""
        self._draw = random.Random(options["seed"])
        self._case = ""
        self._open: list[str] = []
        core = run.scheduler.tree_cache.core
        self._plan = SharePlan(
            core, max_batch=core.slots, max_workers=8, members_per_task=16, max_levels=4, least_saved=1
        )
        self._buffer = np.zeros(self._plan.size, dtype=np.int32)
        self._script = self._cases()

    def waiting_for(self) -> list[str]:
        """What has not come to its end."""
        return [rid for rid in self._open if not self.run.done(rid)]

    def step(self) -> list[Any] | None:
        """What the scheduler receives in this step; None at the end."""
        self._note()
        return next(self._script, [] if not self.run.idle else None)

    def _note(self) -> None:
        """Plan for what is being decoded."""
        slots = np.array([req.req_pool_idx for req in self.run.scheduler.running_batch.reqs if not req.finished()])
        if self._case and len(slots):
            self._plan.update(slots.astype(np.int64), self._buffer, 16, 8)
            saved = self.saved.setdefault(self._case, [])
            if saved[-1:] != [now := self._plan.facts()["tokens_saved"]]:
                saved.append(now)

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(3, self._options["vocabulary"]) for _ in range(count)]

    def _request(self, rid: str, prompt: list[int], new: int) -> Any:
        self._open.append(rid)
        return self.run.request(rid, prompt, new=new)

    def _settle(self) -> Iterator[list[Any]]:
        while self.waiting_for() or not self.run.idle:
            yield []

    def _cases(self) -> Iterator[list[Any]]:
        options = self._options
        # n > 1: SGLang has the prompt prefilled by a request that generates nothing, and then asks for it n times.
        prompt = self._tokens(options["prompt"])
        yield [self._request("prompt", prompt, 0)]
        yield from self._settle()
        self._case = "samples"
        yield [self._request(f"sample{i}", prompt, 24) for i in range(options["samples"])]
        yield from self._settle()

        self._case = "forks of a live request"
        prompt = self._tokens(options["prompt"])
        yield [self._request("live", prompt, options["outputs"] + 40)]
        while len(outputs := self._outputs("live")) < options["outputs"]:
            yield []
        so_far = prompt + outputs[: options["outputs"]]
        yield [self._request("fork0", so_far + self._tokens(5), 24)]
        while not self._outputs("fork0"):
            yield []
        yield [self._request("fork1", so_far + self._tokens(9), 12)]
        yield from self._settle()

    def _outputs(self, rid: str) -> list[int]:
        req = self.run.requests.get(rid)
        return [] if req is None else list(req.output_ids)
