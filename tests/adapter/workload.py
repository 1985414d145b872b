# SPDX-License-Identifier: Apache-2.0
"""A script of requests that brings a scheduler into every situation that a KV cache has to survive.

What a request says never depends on when it is scheduled, so that every scheduler must give the same outputs:
conversations go on with what was generated, forks with the first tokens of what is being generated.
"""

import random
from collections.abc import Callable
from typing import Any

_SYSTEM = 70


class Workload:
    """Steps through conversations, forks, twins, aborts and a flush.

    Args:
        options: seed, conversations, turns, at_once, new (tokens to generate), longest (tokens of a whole sequence),
            aborts (bool), flush (bool), priorities (bool, default false: every request gets one of its own).
        run: the scheduler's process (`scheduler_run.Run`).
    """

    def __init__(self, options: dict[str, Any], run: Any) -> None:
        self.run = run
        self._seed = options["seed"]
        self._new = options["new"]
        self.longest = options["longest"]
        self.turns = options["turns"]
        self.at_once = options["at_once"]
        self._priorities = options.get("priorities", False)
        self.seen: set[str] = set()
        self._system = self._tokens("system", _SYSTEM)
        # (rid, prompt, tokens to generate, extra key) that may start; and what waits for a condition.
        self._ready: list[tuple[str, list[int], int, str | None]] = []
        self._later: list[tuple[str, Callable[[], bool], Callable[[], list[Any]]]] = []
        self._open: dict[str, int] = {}
        self._flushes = 1 if options["flush"] else 0
        for number in range(options["conversations"]):
            key = ("a", "b", None, None)[number % 4]
            self._plan_turn(f"c{number}", 0, self._system + self._tokens(f"c{number}", 5, 60), key)
        twin = self._system + self._tokens("twin", 50)
        self._ready += [(f"twin{i}", twin, self._new, None) for i in range(4)]
        # Parallel sampling as the tokenizer manager does it: the prompt first, then its samples.
        prompt = self._system + self._tokens("sample", 90)
        self._ready.append(("sample-prompt", prompt, 0, None))
        self._after("sample-prompt", lambda: [self._start(f"sample{i}", prompt, self._new, None) for i in range(3)])
        if options["aborts"]:
            self._plan_aborts()
        random.Random(self._seed).shuffle(self._ready)

    # ---- the script

    def _tokens(self, what: str, least: int, most: int | None = None) -> list[int]:
        """Tokens that depend on the name alone, and not on when they are asked for."""
        source = random.Random(f"{self._seed} {what}")
        count = least if most is None else source.randint(least, most)
        return [source.randrange(3, 320) for _ in range(count)]

    def _plan_turn(self, name: str, turn: int, prompt: list[int], key: str | None) -> None:
        rid = f"{name}.{turn}"
        if len(prompt) + self._new > self.longest or turn == self.turns:
            return
        user = self._tokens(f"{rid} user", 3, 80)
        forks_at = random.Random(f"{self._seed} {rid} fork").choice((None, 3, 9))
        fork_says = self._tokens(f"{rid} fork", 20)
        self._ready.append((rid, prompt, self._new, key))
        self._after(rid, lambda: self._plan_turn(name, turn + 1, prompt + self._output(rid) + user, key))
        if forks_at is not None and len(prompt) + forks_at + len(fork_says) + self._new <= self.longest:

            def forkable() -> bool:
                return len(self._output(rid)) >= forks_at or self.run.done(rid)

            def fork() -> list[Any]:
                if len(self._output(rid)) < forks_at:
                    return []  # it was given up before
                live = self.run.requests[rid]
                self.seen.add("fork of a finished request" if live.finished() else "fork of a live request")
                return [self._start(f"{rid}.fork", prompt + self._output(rid)[:forks_at] + fork_says, self._new, key)]

            self._later.append((f"{forks_at} tokens of {rid}", forkable, fork))

    def _plan_aborts(self) -> None:
        def when(rid: str, stage: str, condition: Callable[[Any], bool]) -> None:
            def reached() -> bool:
                req = self.run.requests.get(rid)
                return req is not None and (condition(req) or self.run.done(rid))

            def abort() -> list[Any]:
                if not self.run.done(rid):
                    self.seen.add(f"abort {stage}")
                return [self.run.abort(rid)]

            self._ready.append(
                (rid, self._system + self._tokens(rid, self.longest - _SYSTEM - self._new), self._new, None)
            )
            self._later.append((f"{stage} of {rid}", reached, abort))

        scheduler = self.run.scheduler
        for i in range(2):
            when(f"abort-waiting{i}", "while waiting", lambda req: req in scheduler.waiting_queue)
            when(f"abort-chunk{i}", "between chunks", lambda req: scheduler.chunked_req is req)
            when(f"abort-first{i}", "after the first token", lambda req: len(req.output_ids) == 1)
            when(f"abort-decode{i}", "while decoding", lambda req: len(req.output_ids) >= 5)
            when(f"abort-last{i}", "before the last token", lambda req: len(req.output_ids) == self._new - 1)

    def _after(self, rid: str, then: Callable[[], Any]) -> None:
        self._later.append((f"the end of {rid}", lambda: self.run.done(rid), then))

    def _output(self, rid: str) -> list[int]:
        req = self.run.requests.get(rid)
        return [] if req is None else list(req.output_ids)

    def _start(self, rid: str, prompt: list[int], new: int, key: str | None) -> Any:
        self._open[rid] = len(prompt)
        priority = random.Random(f"{self._seed} {rid} priority").randrange(50) if self._priorities else None
        return self.run.request(rid, prompt, new=new, extra_key=key, priority=priority)

    # ---- stepping

    def waiting_for(self) -> list[str]:
        """What the script waits for, in words."""
        return [what for what, _, _ in self._later] + [rid for rid, *_ in self._ready] + list(self._open)

    def step(self) -> list[Any] | None:
        """What the scheduler receives in this step; None at the end."""
        out: list[Any] = []
        for item in list(self._later):
            _what, condition, act = item
            if condition():
                self._later.remove(item)
                out += act() or []
        self._open = {rid: size for rid, size in self._open.items() if not self.run.done(rid)}
        while self._ready and len(self._open) < self.at_once:
            out.append(self._start(*self._ready.pop(0)))
        if out or self._ready or self._later or self._open:
            return out
        if not self.run.idle:
            return []
        if self._flushes:
            self._flushes -= 1
            self.run.flush()
            self.seen.add("flush")
            # The same again from an empty cache.
            self._plan_turn("again", 0, self._system + self._tokens("again", 40), None)
            return []
        return None
