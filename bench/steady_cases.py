# SPDX-License-Identifier: Apache-2.0
"""The cases of bench/steady.py, from their options to their results, and the targets that these reach."""

import argparse
import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import steady_cold
import steady_core
import steady_options as options
import steady_prefix
import steady_serve
import steady_servers
from rich.console import Console
from rich.table import Table
from serve_compare import RUN_METRICS, compare, table
from serve_load import vocabulary
from steady_load import Steady

from vt_sglang.layout import Geometry
from vt_sglang.replay import sizes

DRIVER_CALLS_PER_1000 = 0.05
RETURNING_BIND_US = 200.0
DRIVER_SHARE = 0.01
COLD_BIND_MS = 10.0


def core(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A load on the core alone."""
    steady = options.steady(given)
    shape, pace = options.shape(given, steady), options.pace(given)
    found = steady_core.result(shape, steady, pace, steady_core.replay(shape, steady, pace, check=given.check))
    steady_core.show(console, found)
    return {"core": found, "targets": _core_targets(found)}


def served(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A load on servers, and then, when their memory is free again, on the core."""
    steady = options.steady(given)
    steady_servers.ensure_model(given)
    found: dict[str, Any] = {"targets": {}}
    shape = None
    if not given.no_server:
        token_bytes = sizes.model(str(given.model), given.kv_dtype).token_bytes if given.budget else 1
        total = options.budget_bytes(given, steady, token_bytes) // token_bytes
        launches = steady_servers.launches(
            given,
            longest_tokens=steady.longest_tokens,
            total_tokens=total,
            requests=options.slots(given, steady),
            stock=given.load == "returning",
        )
        words = vocabulary(Path(given.model))
        plan = steady_serve.Plan(
            launches,
            steady.passes,
            lambda _, client, number: steady_serve.play(client, steady, words, number),
            given.together,
            given.logs,
            given.timeout,
        )
    if not given.no_core:  # what makes no sense is refused before servers start
        shape, pace = options.shape(given, steady), options.pace(given)
    if not given.no_server:
        measured = steady_serve.Measured()
        asyncio.run(steady_serve.measure(plan, measured, console))
        found |= _of_servers(plan, steady, measured, total)
        found["targets"] |= _server_targets(found)
        _show_servers(console, found)
    if shape is not None:
        found["core"] = steady_core.result(
            shape, steady, pace, steady_core.replay(shape, steady, pace, check=given.check)
        )
        steady_core.show(console, found["core"])
        found["targets"] |= _core_targets(found["core"])
    return found


def cold(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A long shared prefix where nothing of it is mapped: on the core, and on servers."""
    found: dict[str, Any] = {"targets": {}, "prefix_tokens": given.prefix, "own_tokens": given.turn_in}
    steady_servers.ensure_model(given)
    longest = given.prefix + given.turn_in + given.turn_out
    if not given.no_server:
        plan = steady_prefix.Plan(
            steady_servers.launches(
                given,
                longest_tokens=longest,
                total_tokens=(given.rounds + 2) * (longest + 2 * given.turn_in),  # no page is used for two rounds
                requests=given.rounds + 3,
                stock=False,
            ),
            given.prefix,
            given.turn_in,
            given.turn_out,
            given.rounds,
            vocabulary(Path(given.model)),
            given.seed,
            given.logs,
            given.timeout,
        )
    if not given.no_core:
        token_bytes = given.token_bytes or sizes.model(str(given.model), given.kv_dtype).token_bytes
        driver, page_bytes = options.memory(given, token_bytes)
        geometry = Geometry(page_bytes, token_bytes)
        requests = 2 * given.repeats + 4
        pages = geometry.pages_for(given.prefix) + requests * (geometry.pages_for(given.turn_in) + 2)
        shape = steady_core.Shape(
            driver,
            page_bytes,
            token_bytes,
            given.repeats + 3,
            longest,
            pages,
            options.moves(given, driver),
            copy_from_pages=given.copy_from,
        )
        on_core = steady_cold.measure(
            shape,
            prefix=given.prefix,
            own=given.turn_in,
            guard=given.guard,
            repeats=given.repeats,
            settle_s=given.settle,
        )
        found["core"] = {"cache": asdict(shape), "guard_tokens": given.guard, "settle_s": given.settle} | on_core
        steady_cold.show(console, on_core)
        if driver != "none":
            for kind in (it for it in steady_cold.kinds(on_core) if it != "warm"):
                where = "mapped" if kind == "cold" else kind
                found["targets"][f"core: cold bind to launch, {where}, p99, ms"] = _target(
                    on_core[f"{kind}_us"]["all"]["p99"] / 1e3, COLD_BIND_MS
                )
    if not given.no_server:
        rounds = asyncio.run(steady_prefix.measure(plan, console))
        found |= {
            "sides": steady_serve.sides(plan.launches),
            "rounds": rounds,
            "servers": steady_prefix.summary(rounds),
        }
        steady_prefix.show(console, found["servers"])
        for side, figures in found["servers"].items():
            if "cold_driver_ms" in figures:
                found["targets"][f"{side}: cold bind over a warm one, ms of TTFT"] = _target(
                    figures["cold_bind_ms"], COLD_BIND_MS
                )
    return found


def show_targets(console: Console, targets: dict[str, Any]) -> None:
    """What was to be reached; no time is a target where pages have no memory."""
    if not targets:
        return
    shown = Table("", "measured", "target", "reached")
    for name, it in targets.items():
        shown.add_row(name, f"{it['measured']:,.4g}", f"at most {it['most']:g}", "yes" if it["reached"] else "no")
    console.print(shown)


def _target(measured: float, most: float) -> dict[str, Any]:
    return {"measured": measured, "most": most, "reached": measured <= most}


def _core_targets(found: dict[str, Any]) -> dict[str, Any]:
    measured = found["passes"][found["load"]["warm"] :]
    calls = max(it["driver_calls_per_1000_tokens"] for it in measured)
    targets = {"core: driver calls per 1,000 tokens": _target(calls, DRIVER_CALLS_PER_1000)}
    binds = [us for it in measured if (us := steady_core.returning_bind_us(it)) is not None]
    if binds and found["cache"]["driver"] != "none":
        targets["core: p99 of returning binds, us"] = _target(max(binds), RETURNING_BIND_US)
    return targets


def _of_servers(plan: steady_serve.Plan, steady: Steady, measured: steady_serve.Measured, total: int) -> dict[str, Any]:
    names = [it.name for it in plan.launches]
    passes = {
        name: [it for it in measured.passes if it["side"] == name and it["pass"] >= steady.warm] for name in names
    }
    return {
        "load": asdict(steady),
        "total_tokens": total,
        "together": plan.together,
        "sides": steady_serve.sides(plan.launches),
        "passes": measured.passes,
        "starts": measured.starts,
        "rows": compare(RUN_METRICS, passes),
        "drivers": {name: steady_serve.drivers(it) for name, it in passes.items() if "counters" in it[0]},
    }


def _server_targets(found: dict[str, Any]) -> dict[str, Any]:
    targets = {}
    for name, it in found["drivers"].items():
        targets[f"{name}: driver calls per 1,000 tokens"] = _target(
            it["driver_calls_per_1000_tokens"], DRIVER_CALLS_PER_1000
        )
        targets[f"{name}: scheduler's time in or waiting for the driver"] = _target(it["share"], DRIVER_SHARE)
    return targets


def _show_servers(console: Console, found: dict[str, Any]) -> None:
    header, lines = table(found["rows"])
    shown = Table(header[0], *header[1:], title="passes measured", title_justify="left")
    for line in lines:
        shown.add_row(*line)
    console.print(shown)
    steady_serve.show_drivers(console, found["drivers"])
