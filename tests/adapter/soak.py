# SPDX-License-Identifier: Apache-2.0
"""A workload that recycles slots as fast as a scheduler can, and then compares what the tree still holds with a fresh
prefill's."""

import random
import time
from collections import Counter
from typing import Any

import torch

_SYSTEM_PROMPTS = 3
_REMEMBERED = 200


class Soak:
    """Short requests without end, more at a time than there are slots: new conversations, further turns, forks of
    finished and of live requests, twins, aborts. Then some recorded prefixes are read, the cache is emptied, and they
    are computed anew.

    Args:
        options: seed, requests or seconds (how long), at_once, new (most tokens to generate), longest (tokens of a
            whole sequence), vocabulary, prefixes (how many to compare).
        run: the scheduler's process (`scheduler_run.Run`).
    """

    def __init__(self, options: dict[str, Any], run: Any) -> None:
        self.run = run
        self.seen: set[str] = set()
        self.kinds: Counter[str] = Counter()
        """Of requests, by how many there were."""
        self.prefixes: list[dict[str, Any]] = []
        """For each that was compared: tokens, and the largest relative error of a token's K or V, by layer."""
        self._options = options
        self._random = random.Random(options["seed"])
        self._systems = [self._tokens(40 + 60 * i) for i in range(_SYSTEM_PROMPTS)]
        self._known: list[tuple[list[int], str | None]] = []
        self._open: dict[str, tuple[list[int], str | None]] = {}
        self._started = 0
        self._deadline = time.monotonic() + options.get("seconds", float("inf"))
        self._kept: list[tuple[list[int], str | None, torch.Tensor]] = []
        self._verifying = False

    def waiting_for(self) -> list[str]:
        """What has not come to its end."""
        return list(self._open)

    def step(self) -> list[Any] | None:
        """What the scheduler receives in this step; None at the end."""
        self._collect()
        if not self._verifying and self._goes_on():
            return self._more()
        if self._open or not self.run.idle:
            return []
        if not self._verifying:
            self._verifying = True
            return self._keep()
        self._compare()
        return None

    # ---- the load

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(3, self._options["vocabulary"]) for _ in range(count)]

    def _goes_on(self) -> bool:
        return time.monotonic() < self._deadline and self._started < self._options.get("requests", float("inf"))

    def _collect(self) -> None:
        for rid in [rid for rid in self._open if self.run.done(rid)]:
            prompt, key = self._open.pop(rid)
            req = self.run.requests.pop(rid)
            self.run.retractions += req.retraction_count
            if rid not in self.run.aborted and req.output_ids:
                self._known.append((prompt + list(req.output_ids)[:-1], key))
        del self._known[:-_REMEMBERED]

    def _more(self) -> list[Any]:
        out = []
        while len(self._open) < self._options["at_once"] and self._goes_on():
            prompt, key = self._prompt()
            new = self._random.randint(1, self._options["new"])
            out.append(self._start(prompt[: self._options["longest"] - new], key, new))
        if self._random.random() < 0.1:
            rid = self._random.choice(list(self._open))
            if rid in self.run.requests and rid not in self.run.aborted:
                self._saw("abort")
                out.append(self.run.abort(rid))
        return out

    def _saw(self, kind: str) -> None:
        self.seen.add(kind)
        self.kinds[kind] += 1

    def _prompt(self) -> tuple[list[int], str | None]:
        kind = self._random.choices(("turn", "fork", "live fork", "twin", "new"), (35, 15, 15, 10, 25))[0]
        says = self._tokens(self._random.randint(1, 60))
        if kind in ("turn", "fork") and self._known:
            tokens, key = self._random.choice(self._known)
            cut = len(tokens) if kind == "turn" else self._random.randint(1, len(tokens))
            if cut + len(says) < self._options["longest"] // 2 or kind == "fork":
                self._saw(kind)
                return tokens[:cut] + says, key
        live = [rid for rid in self._open if rid in self.run.requests]
        if kind in ("live fork", "twin") and live:
            rid = self._random.choice(live)
            tokens, key = self._open[rid]
            self._saw(kind)
            return (
                (tokens + list(self.run.requests[rid].output_ids) + says, key) if kind == "live fork" else (tokens, key)
            )
        self._saw("new")
        return self._random.choice(self._systems) + says, self._random.choice((None, None, None, "salt"))

    def _start(self, prompt: list[int], key: str | None, new: int) -> Any:
        rid = f"soak{self._started}"
        self._started += 1
        self._open[rid] = (prompt, key)
        return self.run.request(rid, prompt, new=new, extra_key=key)

    # ---- the comparison

    def _keep(self) -> list[Any]:
        found = []
        for tokens, key in self._random.sample(self._known, len(self._known)):
            if len(found) == self._options["prefixes"]:
                break
            kept = self.run.read_kv(tokens, key)
            if kept.shape[2] > 16:
                found.append((tokens[: kept.shape[2]], key, kept))
        self._kept = found
        self.run.flush()
        # Its last token is computed again in any case; so one more, that all of these are recorded.
        return [self._start([*tokens, 3], key, 1) for tokens, key, _ in found]

    def _compare(self) -> None:
        for tokens, key, kept in self._kept:
            fresh = self.run.read_kv(tokens, key)
            assert fresh.shape == kept.shape, "the fresh prefill is not in the tree"
            norms = fresh.flatten(3).norm(dim=3)
            errors = (fresh - kept).flatten(3).norm(dim=3) / norms  # [layers, K and V, tokens]
            by_layer = errors.amax(dim=(1, 2)).tolist()
            self.prefixes.append({"tokens": len(tokens), "worst": by_layer, "mean": errors.mean().item()})
