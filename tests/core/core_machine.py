# SPDX-License-Identifier: Apache-2.0
"""A state machine that drives the core beside a simple model of it, with driver failures at every call.

The model knows five things: what each live request holds, which prefixes were ever recorded, which of them must still
be there, for how many pages there is memory, and to how many the core is limited. A prefix is its hash
(`prefix_hashes`), so the trie of all recorded sequences is a set of hashes. Every byte of a sequence follows from its
prefix (`pattern`), so one wrong byte shows any mixing of contents.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import pytest
from core_harness import WORD, Geometry, Memory, ids, ints, memory_files, pattern, prefix_hashes
from core_plans import Planner, cheapest
from core_world import Fault, Live, Lock, World, leading
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from vt_sglang._core import DriverError, InvariantError, OutOfPages, SlotsBusy

NORMAL_STEPS = 30_000
STEPS = int(os.environ.get("VT_TEST_STEPS", NORMAL_STEPS))  # over all worlds of test_stateful.py, roughly
SEED = int(os.environ.get("VT_TEST_SEED", "0"))
STEPS_PER_EXAMPLE = 50
FORWARDS_BEFORE_RETRY = 64  # of creating a page, after there was no memory for it

NAMESPACES = (None, "", "a")

picks = st.integers(0, 255)
symbols = st.text("ab", max_size=7)
shares = st.sampled_from((0, 85, 255, 255))  # of 255


def maybe_faults(*kinds: str) -> st.SearchStrategy[Fault | None]:
    """No failure, or one of a call of these kinds."""
    return st.none() | st.tuples(st.sampled_from(kinds), st.integers(0, 7))


# Of unmap: where mappings are short.
bind_faults = maybe_faults("create", "create", "map", "copy", "unmap", "clear", "move")
grow_faults = maybe_faults("create", "create", "map", "unmap", "clear", "move")
trim_faults = maybe_faults("unmap", "release")


class CoreMachine(RuleBasedStateMachine):
    """Rules are the core's operations; `verify` runs after each of them."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        files = memory_files()
        self.cache = self.world.make()
        self.memory = Memory(self.cache)
        self.file = next((fd for inode, fd in memory_files().items() if inode not in files), None)
        self.geometry = Geometry(self.cache.token_bytes, self.cache.page_bytes)
        self.longest = min(self.cache.slot_tokens, 24 * self.world.symbol_tokens)
        self.live: dict[int, Live] = {}
        self.locks: list[Lock] = []
        self.known: list[tuple[str | None, list[int], list[int]]] = []  # sequences to start from
        self.recorded: set[int] = set()  # every prefix recorded since the last clear
        self.certain: set[int] = set()  # those that no eviction can have taken
        self.evicted = 0
        self.moved = 0
        self.mapped_ahead = 0
        self.begun = 0
        self.completed = 0
        self.draining: dict[int, tuple[int, dict[int, int]]] = {}  # slot -> (forward, what it maps)
        self.steps = 0
        self.memory_pages: int | None = None  # pages that the machine has memory for; None: for all
        self.failed = 0  # creations for which there was none
        self.withheld = 0  # pages
        self.retry_at = 0  # the forward from which on one is tried again
        self.limit = self.world.budget_pages
        self.planner = self.make_planner()  # of the batch that decodes

    def teardown(self) -> None:
        self.world.clear_faults(self.cache)
        del self.memory, self.planner, self.cache
        self.world.after()

    # ---- what the rules are made of

    def expand(self, text: str) -> list[int]:
        """Tokens of the drawn symbols."""
        return [token for token in ids(text) for _ in range(self.world.symbol_tokens)]

    def idle(self) -> int:
        """Slots that can be bound."""
        return self.world.slots - 1 - len(self.live) - len(self.draining)

    def pick_live(self, pick: int) -> tuple[int, Live]:
        return sorted(self.live.items())[pick % len(self.live)]

    def choose_prompt(self, namespace: str | None, pick: int, cut: int, text: str) -> list[int]:
        """Part of a known sequence, and something new after it."""
        bases = [known for space, known, _ in self.known if space == namespace]
        bases += [it.ids for it in self.live.values() if it.namespace == namespace]
        base = bases[pick % len(bases)] if bases and pick else []
        return (list(base[: len(base) * cut // 255]) + self.expand(text))[: self.longest]

    def note_evictions(self) -> None:
        """After an eviction only locked paths are sure to be there: those of locks and of what requests share."""
        counters = self.cache.counters()
        evicted = counters["nodes_evicted"]
        if counters["pages_moved"] != self.moved:
            self.moved = counters["pages_moved"]
            self.world.met["contents moved"] += 1
        if counters["pages_mapped_ahead"] != self.mapped_ahead:
            self.mapped_ahead = counters["pages_mapped_ahead"]
            self.world.met["mapped ahead"] += 1
        if evicted != self.evicted:
            self.evicted = evicted
            self.certain = {prefix for lock in self.locks for prefix in lock.hashes}
            for it in self.live.values():
                self.certain.update(it.hashes[: it.matched])
            self.world.met["evicted"] += 1

    def observe(self) -> dict[str, Any]:
        """All that a failed operation may not change. Evicting is allowed, and is subtracted."""
        usage = self.cache.usage()
        seen: dict[str, Any] = {
            "live": {slot: self.cache.slot_pages(slot) for slot in self.live},
            "idle": self.cache.idle_slots(),
            "live_slots": usage["live_slots"],
            "live_tokens": usage["live_tokens"],
        }
        found_out = self.cache.counters()["creations_failed"], usage["withheld_pages"]
        seen["deliverable"] = (found_out, self.cache.deliverable_pages())
        seen["deliverable_tokens"] = (found_out, self.cache.available_tokens() + self.cache.evictable_tokens())
        seen["protected_tokens"] = (found_out, self.cache.protected_tokens())
        for name in ("nodes", "tree_tokens", "held_pages", "evictable_pages"):
            seen[name] = (self.cache.counters()["nodes_evicted"], usage[name])
        return seen

    def deliverable(self) -> int:
        """Pages that can really be taken, after evicting if need be: what the core does not know of memory included."""
        self.note_failures()
        usage = self.cache.usage()
        left = usage["budget_pages"] + 1 - usage["created_pages"]
        if self.begun < self.retry_at:
            left -= usage["withheld_pages"]
        if self.memory_pages is not None:
            left = min(left, self.memory_pages - usage["created_pages"])
        return min(usage["free_pages"] + left + usage["evictable_pages"], self.unpinned())

    def unpinned(self) -> int:
        """Pages that the limit leaves to be taken, if everything that is not locked is evicted."""
        usage = self.cache.usage()
        return max(self.limit + 1 - (usage["held_pages"] - usage["evictable_pages"]), 0)

    def physical_pages(self) -> int:
        """Pages that have memory: those that exist, and those that memory was taken for ahead."""
        self.cache.finish_ahead()
        return self.cache.physical_bytes() // self.cache.page_bytes

    def there(self) -> int:
        """Pages that may be held beside the padding page, as far as the core knows."""
        return min(self.limit, self.world.budget_pages - self.cache.usage()["withheld_pages"])

    def note_failures(self) -> None:
        """From the last creation that failed on, forwards are counted."""
        failed = self.cache.counters()["creations_failed"]
        if failed != self.failed:
            self.failed = failed
            self.retry_at = self.begun + FORWARDS_BEFORE_RETRY
        withheld = self.cache.usage()["withheld_pages"]
        if withheld != self.withheld:
            self.world.met["withheld" if withheld > self.withheld else "withheld no more"] += 1
        self.withheld = withheld

    def clear_faults(self) -> None:
        """End injected failures, but not a lack of memory."""
        self.cache.finish_ahead()  # or the thread would take memory for what it has to create while none is lacking
        self.world.clear_faults(self.cache)
        if self.memory_pages is not None:
            self.world.limit_memory(self.cache, self.memory_pages - self.physical_pages())

    def attempt(self, operation: Callable[[], Any], fault: Fault | None) -> Any:
        """Run an operation. If the injected failure meets it, show that it left no trace and succeeds when repeated."""
        if fault is None:
            return self.within_mapping_limit(operation)
        before = self.observe()
        self.cache.finish_ahead()
        self.world.inject(self.cache, fault)
        try:
            done = operation()
            self.cache.finish_ahead()  # the failure may meet the thread: always or never
            return done
        except DriverError as error:
            self.clear_faults()
            self.note_evictions()
            if "max_map_count" not in str(error):
                self.world.met[f"failed {fault[0]}"] += 1
            self.same(before)
            self.verify()
            return self.within_mapping_limit(operation)
        finally:
            self.clear_faults()
            self.note_evictions()

    def within_mapping_limit(self, operation: Callable[[], Any]) -> Any:
        before = self.observe()
        try:
            return operation()
        except DriverError as error:
            if self.world.mapping_limit == 0 or "max_map_count" not in str(error):
                pytest.fail(f"no failure was injected, and yet: {error}")
            self.world.met["mapping limit"] += 1
            self.same(before)
            raise
        finally:
            self.note_evictions()

    def same(self, before: dict[str, Any]) -> None:
        after = self.observe()
        for name, value in before.items():
            if isinstance(value, tuple) and value[0] != after[name][0]:
                continue  # pages were evicted meanwhile, or there was found to be memory for more or fewer
            assert after[name] == value, f"a failed operation changed {name}"

    @contextmanager
    def expecting(self, *errors: type[Exception]) -> Iterator[None]:
        """One of these errors must come, and change nothing; none given: none may come but for the mapping limit."""
        if errors:
            with pytest.raises(errors) as caught:
                yield
            self.world.met[caught.type.__name__] += 1
            return
        try:
            yield
        except DriverError:
            if self.world.mapping_limit == 0:
                raise

    # ---- rules: a request's life

    @initialize()
    def padding_is_written(self) -> None:
        """Kernels write the padding slot's token 0 at any time; it must disturb nobody."""
        assert self.memory.accessible(0, 1)
        self.memory.tokens(0, 0, 1)[:] = np.uint64(2**64 - 1)

    @rule(
        namespace=st.sampled_from(NAMESPACES),
        pick=picks,
        cut=picks,
        text=symbols,
        room=st.integers(0, 3),
        limited=st.booleans(),
        written=shares,
        fault=bind_faults,
    )
    def start(
        self,
        namespace: str | None,
        pick: int,
        cut: int,
        text: str,
        room: int,
        limited: bool,
        written: int,
        fault: Fault | None,
    ) -> None:
        """Match, lock and bind; then compute part of what was not found, or all."""
        prompt = self.choose_prompt(namespace, pick, cut, text)
        total = min(len(prompt) + room * self.world.symbol_tokens, self.longest)
        limit = max(len(prompt) - 1, 0) if limited else None
        slot = self.admit(namespace, prompt, total, limit, 0, fault)
        if slot is not None:
            self.compute(slot, written)

    @rule(namespace=st.sampled_from(NAMESPACES), pick=picks, cut=picks, text=symbols, more=symbols, fault=bind_faults)
    def turn(self, namespace: str | None, pick: int, cut: int, text: str, more: str, fault: Fault | None) -> None:
        """A whole turn of a conversation: prefilled, recorded, decoded, recorded, released."""
        slot = self.admit(namespace, self.choose_prompt(namespace, pick, cut, text), None, None, 0, fault)
        if slot is None:
            return
        it = self.live[slot]
        self.compute(slot, 255)
        self.put(slot, it, it.written, True)
        self.grow_by({slot: self.expand(more)}, 255, fault)
        self.end(slot, True, "after")

    @precondition(lambda self: any(it.ids for it in self.live.values()))
    @rule(pick=picks, text=symbols, fault=bind_faults)
    def join(self, pick: int, text: str, fault: Fault | None) -> None:
        """A request goes on from where a live one is, after everything else was evicted: so pages are free where idle
        slots map them."""
        slot, it = self.pick_live(pick)
        if not it.ids:
            return
        self.cache.evict(self.world.budget_pages)
        self.note_evictions()
        self.compute(slot, 255)
        self.put(slot, it, it.written, True)
        prompt = (it.ids + self.expand(text))[: self.longest]
        joined = self.admit(it.namespace, prompt, None, None, 0, fault)
        if joined is not None:
            self.compute(joined, 255)

    @precondition(lambda self: not self.live and not self.locks and self.idle())
    @rule(
        namespace=st.sampled_from(NAMESPACES),
        pick=picks,
        cut=picks,
        text=symbols,
        fault=bind_faults,
    )
    def start_alone(self, namespace: str | None, pick: int, cut: int, text: str, fault: Fault | None) -> None:
        """What `total_tokens` promises: a request that runs alone gets every page up to that length."""
        prompt = self.choose_prompt(namespace, pick, cut, text)
        total = min(self.longest, self.cache.total_tokens)
        self.cache.create_ahead(self.geometry.pages_for(total), retry=True)
        while self.geometry.pages_for(total) > self.there():
            total -= 1
        slot = self.admit(namespace, prompt[:total], total, None, total, fault)
        if slot is not None:
            self.compute(slot, 255)
            self.world.met["alone"] += 1

    def admit(
        self,
        namespace: str | None,
        prompt: list[int],
        total: int | None,
        limit: int | None,
        total_tokens: int,
        fault: Fault | None,
    ) -> int | None:
        """Match, lock and bind `prompt` to `total` tokens; the slot, or None where the core may refuse and does."""
        total = len(prompt) if total is None else total
        hashes = prefix_hashes(namespace, prompt)
        length = len(prompt) if limit is None else limit
        ids_ = np.array(prompt, dtype=np.int64)
        node, matched = self.cache.match(namespace, ids_, limit, total_tokens)
        assert matched <= leading(hashes[:length], self.recorded)
        if total_tokens == 0:
            assert matched >= leading(hashes[:length], self.certain)
        self.cache.lock(node)
        lock = Lock(node, hashes[:matched])
        self.locks.append(lock)

        # One page more or less, as the tail is copied or extended.
        needed = self.geometry.pages_for(total) - self.geometry.pages_for(matched)
        tail = self.geometry.tail_bytes(matched) != 0
        deliverable = self.deliverable()
        errors: tuple[type[Exception], ...] = ()
        if self.idle() == 0:
            errors = (SlotsBusy,) if self.draining else (ValueError,)
        elif needed > deliverable:
            errors = (OutOfPages,)
        if self.world.move_pages and self.draining and errors == (OutOfPages,):
            errors = (OutOfPages, SlotsBusy)  # a slot that maps nothing may not be taken for a moment's need
        bound = None
        guard = self.world.guard_tokens
        spare = hashes[-1] % 24 if hashes and total_tokens == 0 else 0
        copied = self.cache.counters()["pages_copied"]
        try:
            with self.expecting(*errors):
                bound = self.attempt(lambda: self.cache.bind(namespace, node, total, guard, spare), fault)
        except SlotsBusy:
            assert self.world.move_pages
            assert self.draining
            self.world.met["waited for a mapped slot"] += 1
        except OutOfPages:
            assert tail
            assert needed + 1 > deliverable
            assert total_tokens == 0, "a request that is alone must get its pages"
        if bound is None:
            self.locks.remove(lock)
            self.cache.unlock(node)
            return None
        slot, kind, shared, _ = bound
        self.verify_guards(slot, total)
        self.world.met[f"tail {kind}"] += 1
        assert slot not in self.live
        assert slot not in self.draining, "a slot was taken that a forward still uses"
        assert (kind == "none") == (not tail)
        copied = self.cache.counters()["pages_copied"] - copied
        assert copied == self.cache.costs(slot)["pages_copied"] <= (spare // 2 if self.world.move_pages else 0)
        assert shared + copied == self.geometry.pages_for(matched) - (kind == "copied")
        pages = zip(self.cache.slot_pages(slot), self.cache.path_pages(node)[: shared + copied], strict=False)
        assert sum(own != path for own, path in pages) == copied
        if copied > 0:
            self.world.met["prefix copied"] += 1
        self.live[slot] = Live(namespace, prompt, hashes, total, matched, matched, matched, lock)
        return slot

    @precondition(lambda self: any(it.written < len(it.ids) for it in self.live.values()))
    @rule(pick=picks, share=shares)
    def write(self, pick: int, share: int) -> None:
        """Go on computing a sequence."""
        waiting = sorted(slot for slot, it in self.live.items() if it.written < len(it.ids))
        self.compute(waiting[pick % len(waiting)], share)

    def verify_guards(self, slot: int, tokens: int) -> None:
        """What a kernel may read behind a sequence is memory."""
        if self.world.guard_tokens:
            end = min(tokens + self.world.guard_tokens, self.cache.slot_tokens)
            assert self.memory.accessible(slot, end)

    def compute(self, slot: int, share: int) -> None:
        it = self.live[slot]
        stop = it.written + -(-(len(it.ids) - it.written) * share // 255)
        values = pattern(it.hashes[it.written : stop], self.cache.token_bytes)
        self.memory.tokens(slot, it.written, stop)[:] = values
        it.written = stop

    @precondition(lambda self: self.live)
    @rule(
        pick=picks,
        texts=st.lists(symbols, min_size=4, max_size=4),
        batch=st.integers(0, 15),
        written=shares,
        guarded=st.booleans(),
        fault=grow_faults,
    )
    def grow(self, pick: int, texts: list[str], batch: int, written: int, guarded: bool, fault: Fault | None) -> None:
        """New tokens for one request or several."""
        chosen = [slot for i, slot in enumerate(sorted(self.live)) if batch >> i & 1] or [self.pick_live(pick)[0]]
        new = {slot: self.expand(text) for slot, text in zip(chosen, texts, strict=False)}
        self.grow_by(new, written, fault, guarded)

    def grow_by(self, new: dict[int, list[int]], written: int, fault: Fault | None, guarded: bool = True) -> None:
        chosen = list(new)
        lengths = [max(self.live[slot].backed, len(self.live[slot].ids) + len(new[slot])) for slot in chosen]
        slots, tokens = ints(*chosen), ints(*lengths)
        before = self.observe()
        errors: tuple[type[Exception], ...] = ()
        if max(lengths) > self.cache.slot_tokens:
            errors = (ValueError,)
        elif self.cache.pages_to_grow(slots, tokens) > self.deliverable():
            errors = (OutOfPages,)
        done = False
        with self.expecting(*errors):
            guard = self.world.guard_tokens if guarded else 0
            self.attempt(lambda: self.cache.grow(slots, tokens, guard), fault)
            done = True
        if not done:
            self.same(before)
            return
        for slot, length in zip(chosen, lengths, strict=True):
            if guarded:
                self.verify_guards(slot, length)
            self.live[slot].backed = length
            self.live[slot].extend(new[slot])
            self.compute(slot, written)

    @precondition(lambda self: any(it.written for it in self.live.values()))
    @rule(pick=picks, cut=picks, relock=st.booleans())
    def record(self, pick: int, cut: int, relock: bool) -> None:
        """Put what is written of a request, or part of it, into the tree; perhaps move its lock along."""
        slot, it = self.pick_live(pick)
        self.put(slot, it, it.written if cut > 127 else it.written * cut // 127, relock)

    def put(self, slot: int, it: Live, count: int, relock: bool) -> None:
        before = leading(it.hashes[:count], self.certain)
        tokens = np.array(it.ids, dtype=np.int64)
        node, duplicate, added = self.cache.record(slot, tokens, count)
        assert added <= count - before, "what stands in the tree was added again"
        self.world.met["duplicate"] += duplicate
        self.world.met["recorded"] += added > 0
        self.recorded.update(it.hashes[:count])
        self.certain.update(it.hashes[:count])
        it.recorded = max(it.recorded, count)
        self.known = [*self.known[-19:], (it.namespace, it.ids[:count], it.hashes[:count])]
        if relock:
            self.cache.lock(node)
            old, it.lock = it.lock, Lock(node, it.hashes[: self.cache.node_tokens(node)])
            self.locks.append(it.lock)
            self.end_lock(old)

    def end_lock(self, lock: Lock | None) -> None:
        """A request's lock; nothing if it has ended already."""
        if lock in self.locks:
            self.locks.remove(lock)
            self.cache.unlock(lock.node)

    @precondition(lambda self: self.live)
    @rule(pick=picks, record=st.booleans(), unlock=st.sampled_from(("before", "after", "after", "later")))
    def release(self, pick: int, record: bool, unlock: str) -> None:
        """Finish (recorded) or abort or retract (not), with the end of the lock before or after."""
        self.end(self.pick_live(pick)[0], record, unlock)

    def end(self, slot: int, record: bool, unlock: str) -> None:
        it = self.live[slot]
        if record:
            self.put(slot, it, it.written, False)
        if unlock == "before":
            self.end_lock(it.lock)
        self.cache.release(slot)
        if unlock == "after":
            self.end_lock(it.lock)
        del self.live[slot]
        if it.forward > self.completed:
            mapped = {index: page for (owner, index), page in self.memory.mapped_pages().items() if owner == slot}
            if self.world.map_ahead:  # behind what it held another page may come, where no forward looks
                held = self.geometry.pages_for(it.backed)
                mapped = {index: page for index, page in mapped.items() if index < held}
            self.draining[slot] = (it.forward, mapped)

    @precondition(lambda self: self.locks)
    @rule(pick=picks)
    def unlock(self, pick: int) -> None:
        """Locks end in any order, also long before or after the requests for which they were taken."""
        lock = self.locks.pop(pick % len(self.locks))
        self.cache.unlock(lock.node)

    @precondition(lambda self: self.known and len(self.locks) < 6)
    @rule(pick=picks, cut=picks)
    def lock(self, pick: int, cut: int) -> None:
        """A lock without a request."""
        namespace, tokens, hashes = self.known[pick % len(self.known)]
        node, matched = self.cache.match(namespace, np.array(tokens, dtype=np.int64), len(tokens) * cut // 255)
        self.cache.lock(node)
        self.locks.append(Lock(node, hashes[:matched]))

    # ---- rules: forwards

    @precondition(lambda self: self.live)
    @rule(batch=st.integers(0, 15))
    def begin_forward(self, batch: int) -> None:
        chosen = [slot for i, slot in enumerate(sorted(self.live)) if batch >> i & 1]
        self.begun += 1
        assert self.cache.begin_forward(ints(*chosen)) == self.begun
        for slot in chosen:
            self.live[slot].forward = self.begun

    @precondition(lambda self: self.begun > self.completed)
    @rule(back=st.integers(0, 3))
    def complete_forward(self, back: int) -> None:
        """Usually the last one, sometimes an earlier one."""
        forward = max(self.begun - back, 1)
        self.cache.complete_forward(forward)
        self.completed = max(self.completed, forward)
        self.draining = {slot: it for slot, it in self.draining.items() if it[0] > self.completed}

    # ---- rules: memory

    @precondition(lambda self: self.cache.usage()["tree_tokens"] > 0)
    @rule(pages=st.integers(0, 4))
    def evict(self, pages: int) -> None:
        usage, free = self.cache.usage(), self.cache.available_tokens()
        tokens = self.cache.evict(pages)
        after = self.cache.usage()
        assert usage["tree_tokens"] - after["tree_tokens"] == tokens
        assert usage["held_pages"] - after["held_pages"] >= min(pages, usage["evictable_pages"])
        assert self.cache.available_tokens() >= free
        self.note_evictions()

    @rule(pages=st.integers(0, 16))
    def make_room(self, pages: int) -> None:
        limit, runs = self.world.mapping_limit, self.cache.usage()["mapping_runs"]
        mappable = limit == 0 or runs + 2 * pages <= limit or pages <= self.cache.mappable_pages()
        possible = mappable and pages <= self.deliverable()
        before = self.observe()
        assert self.cache.make_room(pages) == possible
        if possible:
            assert self.cache.usage()["free_pages"] >= pages
        else:
            self.same(before)
        self.note_evictions()

    @rule(pages=st.integers(0, 16), retry=st.booleans())
    def create_ahead(self, pages: int, retry: bool) -> None:
        """Changes nothing but what the core knows of memory; and what it promises then is there."""
        before = self.observe()
        self.cache.create_ahead(pages, retry)
        self.same(before)
        usage = self.cache.usage()
        assert usage["free_pages"] >= pages or (
            min(usage["free_pages"] + usage["evictable_pages"], self.unpinned())
            == self.cache.deliverable_pages()
            == self.deliverable()
        )

    @precondition(lambda self: self.memory_pages is None and self.steps % 4 == 0)
    @rule(pages=st.integers(0, 3))
    def lose_memory(self, pages: int) -> None:
        """Others take all but so many pages."""
        self.memory_pages = max(self.physical_pages(), self.cache.usage()["created_pages"] + pages)
        self.clear_faults()

    @precondition(lambda self: self.memory_pages is None and self.steps % 4 == 1)
    @rule()
    def run_out(self) -> None:
        """Others take all memory, and the core finds out."""
        self.lose_memory(0)
        self.create_ahead(self.cache.usage()["free_pages"] + 1, True)

    @precondition(lambda self: self.memory_pages is not None)
    @rule()
    def gain_memory(self) -> None:
        """Others give it back."""
        self.memory_pages = None
        self.clear_faults()

    @precondition(lambda self: self.memory_pages is not None)
    @rule()
    def recover(self) -> None:
        """Others give it back, and the core finds out."""
        self.gain_memory()
        self.let_time_pass()
        self.create_ahead(self.cache.usage()["free_pages"] + 1, False)

    @precondition(lambda self: self.begun < self.retry_at)
    @rule()
    def let_time_pass(self) -> None:
        while self.begun < self.retry_at:
            self.begun = self.cache.begin_forward(ints())

    @rule(keep=st.integers(0, 5), calls=st.none() | st.integers(0, 6), settled=st.booleans(), fault=trim_faults)
    def trim(self, keep: int, calls: int | None, settled: bool, fault: Fault | None) -> None:
        """Here and when shrinking pages go back to the driver; a failure may come after some of them."""
        free = self.cache.usage()["free_pages"]
        self.attempt(lambda: self.cache.trim(keep, calls, settled), fault)
        left = self.cache.usage()["free_pages"]
        assert min(free, keep) <= left
        if fault is None and calls is not None:
            assert free - left <= calls
        if not self.draining and settled:
            assert left == min(free, keep) if calls is None else left <= max(min(free, keep), free - (calls > 0))

    @precondition(lambda self: self.steps % 3 == 0)
    @rule(pages=st.integers(1, 40), calls=st.none() | st.integers(0, 20), fault=trim_faults)
    def set_limit(self, pages: int, calls: int | None, fault: Fault | None) -> None:
        """Below what is held too: what is not pinned goes at once, and requests keep what they have."""
        if pages > self.world.budget_pages:
            with pytest.raises(ValueError, match="the limit must be 1 to"):
                self.cache.set_limit(pages)
            pages = self.world.budget_pages
        held = {slot: self.cache.slot_pages(slot) for slot in self.live}
        evictable = self.cache.usage()["evictable_pages"]
        self.cache.set_limit(pages)
        self.limit = pages
        self.note_evictions()
        usage = self.cache.usage()
        assert usage["held_pages"] <= pages + 1 or usage["evictable_pages"] == 0
        assert held == {slot: self.cache.slot_pages(slot) for slot in self.live}
        self.world.met["limit evicts"] += usage["evictable_pages"] < evictable
        self.world.met["limit below requests"] += usage["held_pages"] > pages + 1
        if calls is not None:
            self.shrink(calls, fault)

    @precondition(lambda self: self.limit < self.world.budget_pages)
    @rule()
    def lift_limit(self) -> None:
        self.set_limit(self.world.budget_pages, None, None)

    @precondition(lambda self: self.cache.usage()["created_pages"] > self.limit + 1)
    @rule(calls=st.integers(0, 20), fault=trim_faults)
    def shrink(self, calls: int, fault: Fault | None) -> None:
        """What is above the limit and nobody needs goes, and nothing else."""
        before = self.cache.usage()
        given_back = self.attempt(lambda: self.cache.shrink(calls), fault)
        after = self.cache.usage()
        gone = before["created_pages"] - after["created_pages"]
        assert gone >= given_back
        assert after["created_pages"] >= min(before["created_pages"], self.limit + 1)
        assert after["held_pages"] <= self.limit + 1 or after["evictable_pages"] == 0
        if fault is None:
            assert gone == given_back <= calls
        self.world.met["shrunk"] += gone > 0

    @precondition(lambda self: self.steps % 5 == 0)
    @rule()
    def clear(self) -> None:
        if self.live or any(lock.node for lock in self.locks):
            before = self.observe()
            with pytest.raises(InvariantError):
                self.cache.clear()
            assert self.observe() == before
            return
        self.cache.clear()
        self.recorded.clear()
        self.certain.clear()
        self.evicted = self.cache.counters()["nodes_evicted"]
        assert self.cache.usage()["tree_tokens"] == 0
        assert self.cache.usage()["held_pages"] == 1
        assert self.cache.available_tokens() == self.geometry.tokens_in(self.there())
        self.world.met["cleared"] += 1

    # ---- what holds at every moment

    @invariant()
    def verify_step(self) -> None:
        self.steps += 1
        self.world.met["steps"] += 1
        self.verify()
        self.look_up()
        if len(self.live) > 1:
            self.plan()

    def verify(self) -> None:
        if not self.world.late or self.steps % 5 == 0:
            self.cache.finish_ahead()  # so that every run of a machine is the same
        self.cache.check()
        self.note_failures()
        usage = self.cache.usage()
        unrecorded = sum(it.backed - it.recorded for it in self.live.values())
        assert usage["live_tokens"] == unrecorded
        assert usage["live_slots"] == len(self.live)
        assert self.cache.idle_slots() == self.world.slots - 1 - len(self.live)
        reported = (
            self.cache.available_tokens() + self.cache.evictable_tokens() + self.cache.protected_tokens() + unrecorded
        )
        assert reported == self.cache.total_tokens
        assert usage["limit_pages"] == self.limit
        available = max(self.there() + 1 - usage["held_pages"], 0)
        assert self.cache.available_tokens() == self.geometry.tokens_in(available)
        assert self.cache.protected_tokens() <= self.cache.total_tokens
        if not self.world.late or self.steps % 5 == 0:
            physical = self.physical_pages()
            assert physical == usage["created_pages"] or (self.world.map_ahead and physical > usage["created_pages"])
            assert physical <= max(self.limit + 1, usage["created_pages"])
        assert len(self.certain) <= usage["tree_tokens"] <= len(self.recorded)
        self.verify_mappings()
        self.verify_contents()

    def verify_mappings(self) -> None:
        """The kernel maps what the core says, and leaves alone what a forward still uses."""
        mapped = self.memory.mapped_pages()
        for slot, it in self.live.items():
            pages = self.cache.slot_pages(slot)
            assert len(pages) == self.geometry.pages_for(it.backed)
            for index, page in enumerate(pages):
                assert (slot, index) in mapped, f"slot {slot} does not map page index {index}"
                assert self.file is None or mapped[slot, index] == page
        for slot, (_, before) in self.draining.items():
            now = {index: page for (owner, index), page in mapped.items() if owner == slot}
            if self.world.map_ahead:
                now = {index: page for index, page in now.items() if index in before}
            assert now == before, f"slot {slot} was remapped under a forward"

    def verify_contents(self) -> None:
        for slot, it in self.live.items():
            expected = pattern(it.hashes[: it.written], self.cache.token_bytes)
            wrong = np.argwhere(self.memory.tokens(slot, 0, it.written) != expected)
            assert len(wrong) == 0, f"slot {slot}: token {wrong[0][0]} of {it.written}, word {wrong[0][1]}"

    def make_planner(self) -> Planner:
        return Planner(self.cache, max_batch=6, max_workers=4, members_per_task=2, max_levels=4, least_saved=1)

    def plan(self) -> None:
        """What is read together is the same for all who read it; and a plan that is said to hold is what a new one
        would be. The batch is another one every few steps, and not always all that is live."""
        period = self.steps // 3
        slots = [0, *(slot for slot in sorted(self.live) if period % 7 != slot)]
        slots = slots[period % len(slots) :] + slots[: period % len(slots)]
        tile = 1 + period % 3
        changed = self.planner.update(slots, tile, 4)
        rows = [self.live.get(slot) for slot in slots]
        # The last token that is backed is its own.
        prefixes = [it.hashes[: min(it.recorded, it.backed - 1)] if it and it.backed else [] for it in rows]
        self.planner.verify(prefixes)
        again = self.make_planner()
        assert again.update(slots, tile, 4)
        assert np.array_equal(again.written(), self.planner.written())
        shared = bool(again.tasks)
        met = {"planned": changed, "planned before": not changed, "read together": shared}
        # Of what was evicted the tree does not know who shares it; a row that ends too early may stand between others.
        if self.evicted == 0 and all(it is None or it.recorded < it.backed for it in rows):
            least = cheapest(prefixes, again.least_saved, again.members_per_read)
            assert again.cost([len(it) for it in prefixes]) == least
            met["read together at the least cost"] = shared
        self.world.met.update(name for name, is_met in met.items() if is_met)

    def look_up(self) -> None:
        """A recorded sequence is found, as far as it must be, and its pages hold its bytes."""
        if not self.known:
            return
        namespace, tokens, hashes = self.known[self.steps % len(self.known)]
        node, matched = self.cache.match(namespace, np.array(tokens, dtype=np.int64))
        assert leading(hashes, self.certain) <= matched <= leading(hashes, self.recorded)
        if self.file is None:
            return
        pages = self.cache.path_pages(node)
        assert len(pages) == self.geometry.pages_for(matched)
        page_bytes = self.cache.page_bytes
        content = b"".join(os.pread(self.file, page_bytes, page * page_bytes) for page in pages)
        words = np.frombuffer(content, dtype=np.uint64)[: matched * self.cache.token_bytes // WORD]
        assert np.array_equal(words, pattern(hashes[:matched], self.cache.token_bytes).reshape(-1))


def run_machine(world: World, steps: int) -> None:
    """Run examples until about so many steps are done."""
    machine = seed(SEED + zlib.crc32(world.name.encode()))(type("Machine", (CoreMachine,), {"world": world}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=-(-steps // STEPS_PER_EXAMPLE),
            stateful_step_count=STEPS_PER_EXAMPLE,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            print_blob=True,
        ),
    )
