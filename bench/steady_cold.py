# SPDX-License-Identifier: Apache-2.0
"""The case `cold` on the core: a long shared prefix bound to slots that map nothing of it."""

import random
import time
from array import array
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from steady_causes import by_cause, difference
from steady_core import VOCABULARY, Shape, times

from vt_sglang._core import KVCache

PARTS = ("match", "bind", "begin forward")
KINDS = ("cold", "copied", "warm")


def measure(shape: Shape, *, prefix: int, own: int, guard: int, repeats: int, settle_s: float) -> dict[str, Any]:
    """Requests of `prefix` shared tokens and `own` of their own, which stay live: so every one is bound to a slot that
    no other has used. Then some more that come one after the other, to the slot of the one before; and as many that
    find a slot in which free pages are mapped, if contents may move.

    Args:
        guard: tokens behind the last that may be read.
        repeats: requests of each kind, beside the one that computes the prefix.
        settle_s: left between two requests, in which other threads may prepare.

    Raises:
        ValueError, DriverError, OutOfPages: it cannot be done.
    """
    core = shape.make()
    drawn = random.Random(0)
    shared = array("q", (drawn.randrange(VOCABULARY) for _ in range(prefix)))

    def request() -> "array[int]":
        return shared + array("q", (drawn.randrange(VOCABULARY) for _ in range(own)))

    first = request()
    begun = time.perf_counter_ns()
    slot = core.bind(None, 0, len(first), guard)[0]
    created_ns = time.perf_counter_ns() - begun
    _end(core, slot, first)
    live: list[int] = []
    found: dict[str, Any] = {"created_us": created_ns / 1e3, "cold": [], "warm": []}
    # Of the slots, the one that computed the prefix is the nearest: it is taken first, and is warm.
    slot, node, warm = _start(core, request(), guard)
    live.append(slot)
    core.complete_forward(warm.pop("forward"))
    for _ in range(repeats):
        time.sleep(settle_s)
        ids = request()
        slot, node, spent = _start(core, ids, guard)
        core.complete_forward(spent.pop("forward"))
        live.append(slot)
        found["cold"].append(spent)
    last = live.pop()
    for _ in range(repeats):
        core.record(last, ids, len(ids))
        core.unlock(node)
        core.release(last)
        time.sleep(settle_s)
        ids = request()
        last, node, spent = _start(core, ids, guard)
        core.complete_forward(spent.pop("forward"))
        found["warm"].append(spent)
    del core
    if 0 < shape.copy_from_pages <= prefix * shape.token_bytes // shape.page_bytes and shape.move_pages:
        found["copied"] = _copied(shape, prefix=prefix, own=own, guard=guard, repeats=repeats)
    for kind in kinds(found):
        found[f"{kind}_us"] = {part: times([it["ns"][part] for it in found[kind]]) for part in (*PARTS, "all")}
    return found


def kinds(found: dict[str, Any]) -> list[str]:
    """Of requests, those that were measured."""
    return [kind for kind in KINDS if found.get(kind)]


def _copied(shape: Shape, *, prefix: int, own: int, guard: int, repeats: int) -> list[dict[str, Any]]:
    """Requests one after the other, beside one that holds the prefix, in a slot that maps free pages in its place."""
    core = replace(
        shape, slots=2, budget_pages=4 * -(-shape.slot_tokens * shape.token_bytes // shape.page_bytes)
    ).make()
    drawn = random.Random(1)

    def ids(count: int) -> "array[int]":
        return array("q", (drawn.randrange(VOCABULARY) for _ in range(count)))

    shared = ids(prefix)
    holder = core.bind(None, 0, prefix, guard)[0]
    core.complete_forward(core.begin_forward(np.array([holder]), False))
    core.record(holder, shared, prefix)
    core.release(core.bind(None, 0, prefix + own, guard)[0])
    core.create_ahead(core.usage()["budget_pages"], retry=False)
    found = []
    for _ in range(repeats):
        slot, node, spent = _start(core, shared + ids(own), guard, spare=core.usage()["budget_pages"])
        if shape.driver == "cuda":
            spent["on_device_us"] = _await_device()
        core.complete_forward(spent.pop("forward"))
        core.release(slot)
        core.unlock(node)
        found.append(spent)
    return found


def _await_device() -> float:
    """Returns how long that took."""
    import torch

    start = time.perf_counter_ns()
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) / 1e3


def _start(core: KVCache, ids: "array[int]", guard: int, spare: int = 0) -> tuple[int, int, dict[str, Any]]:
    """All calls until the prefill can be launched: (slot, node, what they cost)."""
    before = dict(core.counters())
    marks = [time.perf_counter_ns()]
    node, matched = core.match(None, ids, len(ids) - 1, len(ids))
    core.lock(node)
    marks.append(time.perf_counter_ns())
    slot, _, shared, mapped = core.bind(None, node, len(ids), guard, spare)
    core.grow(np.array([slot]), np.array([len(ids)]), guard)
    marks.append(time.perf_counter_ns())
    forward = core.begin_forward(np.array([slot]), guard > 0)
    marks.append(time.perf_counter_ns())
    counted = difference(before, dict(core.counters()))
    spent = {part: end - start for part, start, end in zip(PARTS, marks, marks[1:], strict=False)}
    spent["all"] = marks[-1] - marks[0]
    return (
        slot,
        node,
        {
            "forward": forward,
            "matched_tokens": matched,
            "pages_shared": shared,
            "pages_mapped": mapped,
            "driver_ns": counted["driver_ns"],
            "causes": by_cause(counted, core.page_bytes / core.token_bytes),
            "ns": spent,
        },
    )


def _end(core: KVCache, slot: int, ids: "array[int]") -> None:
    core.complete_forward(core.begin_forward(np.array([slot]), False))
    core.record(slot, ids, len(ids))
    core.release(slot)


def show(console: Console, found: dict[str, Any]) -> None:
    """What a bind took."""
    table = Table("", "p50, us", "p99, us", "max, us", "pages shared", "copied", "mapped", "driver calls", "driver, us")
    for kind in kinds(found):
        last = found[kind][-1]
        for part in (*PARTS, "all"):
            it = found[f"{kind}_us"][part]
            cells = [f"{it[p]:,.1f}" for p in ("p50", "p99", "p100")]
            if part == "all":
                counts = last["pages_shared"], last["causes"]["copied"], last["pages_mapped"], last["causes"]["all"]
                cells += [f"{count:,}" for count in counts]
                cells.append(f"{last['driver_ns'] / 1e3:,.1f}")
            table.add_row(f"{kind}: {part}", *cells)
    console.print(table)
    if device := sorted(it["on_device_us"] for it in found.get("copied", ()) if "on_device_us" in it):
        console.print(f"Copies take the device {device[len(device) // 2] / 1e3:,.2f} ms then.", highlight=False)
    console.print(f"The prefix's own pages, created and mapped: {found['created_us'] / 1e3:,.2f} ms.", highlight=False)
