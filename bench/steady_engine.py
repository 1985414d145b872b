# SPDX-License-Identifier: Apache-2.0
"""A server's scheduler without a server: the calls that it makes of the core for a load, in their order.

As SGLang's with its overlap schedule: a step's forward is launched before the results of the one before are looked at,
so that a request which ends is part of one forward more. Prompts go first, as many tokens a step as a chunk has; the
rest of the time all that run decode. Only as many are let in as can be given their memory to the end, so nobody is
retracted. There is no model: answers are drawn, and a forward takes as long as is asked for.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from steady_causes import Ledger, Result
from steady_load import Source, Turn

from vt_sglang._core import KVCache, SlotsBusy
from vt_sglang.layout import Geometry


class TooSmallError(Exception):
    """A request does not fit the cache, even alone."""


@dataclass(frozen=True)
class Pace:
    chunk_tokens: int
    """Prompt tokens of a forward."""
    guard_tokens: int
    """Tokens behind the last that forwards of prompts may read."""
    forward_s: float
    """What a forward takes; other threads run meanwhile."""
    think_steps: int
    """At most so many steps from an answer's end until the next turn is there; drawn, so that requests do not keep
    step with one another as no server's do."""


@dataclass
class Request:
    number: int
    """By which its source knows it."""
    turn: Turn
    due: int
    """The step from which on it waits."""
    node: int = 0
    matched: int = 0
    slot: int = 0
    backed: int = 0
    """Tokens that its slot has memory for."""
    generated: int = 0
    ended: bool = False

    @property
    def prompt(self) -> int:
        return self.turn.prompt

    @property
    def most_tokens(self) -> int:
        return self.turn.prompt + self.turn.output


@dataclass(frozen=True)
class Forward:
    number: int
    """As the core counts."""
    requests: list[Request]
    is_prefill: bool
    unfinished: Request | None
    """The one whose prompt goes on in the next chunk."""
    end_s: float


class Engine:
    """Plays loads, one after the other, on one core."""

    def __init__(self, core: KVCache, pace: Pace, ledger: Ledger) -> None:
        self._core, self._pace, self._ledger = core, pace, ledger
        self._geometry = Geometry(core.page_bytes, core.token_bytes)
        self._draw = random.Random(0)
        self._step = 0
        self._launched = 0
        self._free_s = 0.0  # when the device has nothing to do any more
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._chunked: Request | None = None
        self.waits_for_forwards = 0
        """How often a forward had to end before a slot or a mapping was free."""
        self.steps = 0
        self.matched_tokens = 0

    def play(self, source: Source, clients: int) -> None:
        """All of a source. Raises TooSmallError; OutOfPages and DriverError where memory cannot be had after all."""
        self.steps = self.waits_for_forwards = self.matched_tokens = 0
        self._source = source
        for _ in range(clients):
            self._ask(source.first(), self._step)
        before: Forward | None = None
        while self._waiting or self._running or self._chunked or before:
            self._step += 1
            launched = self._prefill() or self._decode()
            self.steps += launched is not None
            if before is not None:
                self._process(before)
            before = launched

    def _ask(self, number: int | None, due: int) -> None:
        if number is not None:
            self._waiting.append(Request(number, self._source.request(number), due))

    # ---- launching

    def _prefill(self) -> Forward | None:
        core, ledger, left = self._core, self._ledger, self._pace.chunk_tokens
        batch: list[tuple[Request, int]] = []
        pages = 0  # that the step takes
        unfinished = self._chunked
        if unfinished is not None:
            self._record(unfinished, unfinished.backed)
            end = min(unfinished.prompt, unfinished.backed + left)
            left -= end - unfinished.backed
            pages += self._geometry.pages_for(end) - self._geometry.pages_for(unfinished.backed)
            batch.append((unfinished, end))
        while left > 0 and self._waiting and self._waiting[0].due < self._step:
            request = self._waiting[0]
            turn = request.turn
            request.node, request.matched = ledger.timed(
                "match", core.match, turn.namespace, turn.ids, turn.prompt - 1, request.most_tokens
            )
            ledger.timed("lock", core.lock, request.node)
            if not self._fits(request, [it for it, _ in batch]):
                core.unlock(request.node)
                break
            self._waiting.popleft()
            end = min(request.prompt, request.matched + left)
            left -= end - request.matched
            pages += self._geometry.pages_for(end) - self._geometry.page_of(request.matched)
            ledger.counted("create ahead", core.create_ahead, pages)
            batch.append((request, end))
        if not batch:
            if self._waiting and self._waiting[0].due < self._step and not self._running:
                raise TooSmallError(
                    f"a request of {self._waiting[0].most_tokens:,} tokens does not fit the cache of "
                    f"{core.total_tokens:,}"
                )
            return None
        spare = self._spare_pages([it for it, _ in batch], pages)
        for request, end in batch:
            if request.slot == 0:
                bind = partial(self._bind, request, end, spare)
                request.slot = self._patiently(f"bind, {request.turn.kind}", bind)
                spare -= core.costs(request.slot)["pages_copied"]
                self.matched_tokens += request.matched
            request.backed = end
        requests = [request for request, _ in batch]
        self._grow("grow, prefill", requests, [end for _, end in batch], self._pace.guard_tokens)
        self._chunked = next((it for it in requests if it.backed < it.prompt), None)
        forward = self._launch(requests, is_prefill=True)
        self._running += [it for it in requests if it is not self._chunked]
        return forward

    def _bind(self, request: Request, end: int, spare: int) -> int:
        return self._core.bind(request.turn.namespace, request.node, end, self._pace.guard_tokens, spare)[0]

    def _spare_pages(self, batch: Sequence[Request], step_pages: int) -> int:
        """Pages that are free beside those of the step, and not promised to anybody."""
        longest = max((self._geometry.page_of(it.matched) for it in batch if it.slot == 0), default=0)
        if not 0 < self._core.copy_from_pages <= longest:
            return 0
        free = self._core.usage()["free_pages"] - step_pages
        return max(min(free, self._core.deliverable_pages() - self._promised(batch)), 0)

    def _fits(self, request: Request, batch: Sequence[Request]) -> bool:
        """Whether pages are left for all of it, after what those that run and those of the batch may still take."""
        return self._core.deliverable_pages() >= self._promised([*batch, request])

    def _promised(self, batch: Sequence[Request]) -> int:
        """Pages that those that run and those of the batch may still take."""
        pages_for, page_of = self._geometry.pages_for, self._geometry.page_of
        promised = 0
        for it in {id(it): it for it in (*self._running, *batch)}.values():
            promised += pages_for(it.most_tokens) - (pages_for(it.backed) if it.slot else page_of(it.matched))
        return promised

    def _decode(self) -> Forward | None:
        if not self._running:
            return None
        ends = [it.backed + 1 for it in self._running]
        arrays = self._arrays(self._running, ends)
        pages = self._ledger.timed("pages to grow", self._core.pages_to_grow, *arrays)
        if not self._ledger.counted("make room", self._core.make_room, pages):
            raise TooSmallError(f"{pages} pages for decode cannot be had")
        self._grow("grow, decode", self._running, ends, 0)
        self._ledger.timed("grow, again", self._core.grow, *arrays, 0)
        for request in self._running:
            request.backed += 1
        return self._launch(list(self._running), is_prefill=False)

    def _grow(self, operation: str, requests: Sequence[Request], ends: Sequence[int], guard: int) -> None:
        arrays = self._arrays(requests, ends)
        self._patiently(operation, lambda: self._core.grow(*arrays, guard))

    def _patiently(self, operation: str, call: Callable[[], Result]) -> Result:
        try:
            return self._ledger.counted(operation, call)
        except SlotsBusy:
            self.waits_for_forwards += 1
            time.sleep(max(0.0, self._free_s - time.perf_counter()))
            self._core.complete_forward(self._launched)
            return self._ledger.counted(operation, call)

    def _launch(self, requests: list[Request], *, is_prefill: bool) -> Forward:
        slots = np.array([it.slot for it in requests], dtype=np.int64)
        reads_guards = is_prefill and self._pace.guard_tokens > 0
        self._launched = self._ledger.timed("begin forward", self._core.begin_forward, slots, reads_guards)
        self._free_s = max(self._free_s, time.perf_counter()) + self._pace.forward_s
        return Forward(self._launched, requests, is_prefill, self._chunked if is_prefill else None, self._free_s)

    @staticmethod
    def _arrays(requests: Sequence[Request], ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([it.slot for it in requests], dtype=np.int64), np.array(ends, dtype=np.int64)

    # ---- results

    def _process(self, forward: Forward) -> None:
        if self._pace.forward_s:
            time.sleep(max(0.0, forward.end_s - time.perf_counter()))
        self._ledger.timed("complete forward", self._core.complete_forward, forward.number)
        for request in forward.requests:
            if request.ended or request is forward.unfinished:
                continue
            request.generated += 1
            if request.generated == request.turn.output:
                self._end(request)
            elif forward.is_prefill:
                self._record(request, request.prompt)
        self._running = [it for it in self._running if not it.ended]

    def _record(self, request: Request, tokens: int) -> None:
        node, duplicate, _ = self._ledger.timed("record", self._core.record, request.slot, request.turn.ids, tokens)
        if not duplicate:
            self._core.lock(node)
            self._core.unlock(request.node)
            request.node = node

    def _end(self, request: Request) -> None:
        """The last token of an answer is never computed, and so not recorded."""
        self._ledger.timed("record", self._core.record, request.slot, request.turn.ids, request.most_tokens - 1)
        self._core.unlock(request.node)
        self._ledger.timed("release", self._core.release, request.slot)
        request.ended = True
        think = self._draw.randint(0, self._pace.think_steps)
        self._ask(self._source.after(request.number), self._step + think)
