# SPDX-License-Identifier: Apache-2.0
"""The case `served-trace`: a recorded trace on servers, one after the other, beside an ideal cache and the core.

In a closed loop so many clients take the trace's requests in its order; in an open loop each request is sent when it is
due by the trace's times, divided by the speed, whatever is at the server then. The ideal cache is that of the case
`trace`; its capacity is each server's own. In every pass the trace comes with other ids, and the last one is measured.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import steady_core
import steady_options as options
import steady_serve
import steady_served_table
import steady_servers
import steady_trace
from rich.console import Console
from rich.table import Table
from serve_load import vocabulary
from serve_run import MeasuringError
from steady_trace_load import Recording, TooLongError, read

from vt_sglang.chat import play as chat_play
from vt_sglang.chat.client import Answer, Client, RequestError, ServerLostError
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.pace import Pace
from vt_sglang.chat.play import Generator, Played
from vt_sglang.chat.run import OPEN_RUNNING_REQUESTS
from vt_sglang.chat.script import Script, Turn
from vt_sglang.chat.server import Server
from vt_sglang.replay import distances, sizes
from vt_sglang.replay.work import Work

CLIENTS = 16


@dataclass(frozen=True)
class Load:
    """What is played on each server."""

    recorded: Recording
    vocabulary: int
    clients: int | None
    """At work at a time, in a closed loop; None: an open loop."""
    speed: float | None
    """How many times faster than in the trace time passes, in an open loop."""
    reserve: int
    """Tokens of its memory that a server keeps from a request."""

    async def play(self, server: Server, client: Client, number: int) -> Played:
        """A pass. MeasuringError: a request does not fit the server's memory."""
        capacity = (await server.info() or {}).get("max_total_num_tokens")
        if capacity is not None:
            try:
                self.recorded.refuse_longer(capacity - self.reserve, f"{server.launch.name}'s memory")
            except TooLongError as error:
                raise MeasuringError(str(error)) from None
        due = None if self.speed is None else self.recorded.due_s(self.speed)
        return await play(client, self.recorded.works(self.vocabulary, number), self.clients or 1, due)


class _Sender:
    """Sends a request by its number, with an answer of its own length; after one that failed the others are given up,
    since the figures would be worth nothing."""

    def __init__(self, server: Generator, works: Sequence[Work]) -> None:
        self._server, self._works = server, works

    async def generate(self, input_ids: list[int], _: int) -> Answer:
        """input_ids: the number, alone, so that ids are unpacked only while they are at the server."""
        it = self._works[input_ids[0]]
        try:
            return await self._server.generate(it.units[: it.prompt].tolist(), steady_trace.output_tokens(it))
        except RequestError as error:
            raise ServerLostError(f"request {input_ids[0] + 1} of those played: {error}") from error


async def play(server: Generator, works: Sequence[Work], clients: int, due_s: Sequence[float] | None) -> Played:
    """Play requests once, in their order.

    Args:
        clients: at work at a time, if nothing is said of when they are due.
        due_s: when each is sent, in seconds from the beginning.
    """
    scripts = [Script((Turn([number], None),), 0, None) for number in range(len(works))]
    return await chat_play.play(scripts, _Sender(server, works), clients=clients, output_tokens=1, pace=Pace(due_s))


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Servers, and then, when their memory is free, the core.

    Raises:
        ValueError (TraceError, SizeError, TooLongError), OSError: it makes no sense, or there is no such trace.
        ServerError, MeasuringError: it could not be measured.
    """
    steady_trace.refuse_passes(given.passes)
    recorded = read(given.trace, given.limit, given.skip_longer)
    if given.speed is not None and not recorded.timed:
        raise ValueError(f"--speed: {given.trace} does not say when requests arrived; --clients plays it all the same")
    clients = None if given.speed is not None else given.clients or CLIENTS
    slots: int = given.slots or (2 * clients if clients else OPEN_RUNNING_REQUESTS)
    if clients is not None and slots < clients:
        raise ValueError(f"--slots: {slots} are too few for {clients} clients")
    steady_servers.ensure_model(given)
    token_bytes = given.token_bytes or sizes.model(str(given.model), given.kv_dtype).token_bytes
    total = None if given.budget is None else sizes.parse_capacity(given.budget, token_bytes) // token_bytes
    if given.context is not None:
        recorded.refuse_longer(given.context, "--context")
    longest: int = given.context or recorded.longest_tokens
    launches = steady_servers.launches(given, longest_tokens=longest, total_tokens=total, requests=slots, stock=False)
    _refuse_longer(recorded, launches, given.reserve)
    load = Load(recorded, vocabulary(Path(given.model)), clients, given.speed, given.reserve)
    driver, page_bytes = options.memory(given, token_bytes)  # what makes no sense is refused before servers start
    plan = steady_serve.Plan(launches, given.passes, load.play, False, given.logs, given.timeout)
    measured = steady_serve.Measured()
    asyncio.run(steady_serve.measure(plan, measured, console))

    works = recorded.works(load.vocabulary, given.passes - 1)
    ideal = distances.measure(works)
    found = _of_servers(plan, load, measured, works, ideal)
    if not given.no_core:
        side = _core_side(found["servers"])
        pages = side["total_tokens"] * token_bytes // page_bytes
        shape = steady_core.Shape(
            driver, page_bytes, token_bytes, slots, longest, pages, options.moves(given, driver), given.map_ahead
        )
        at_work = clients or min(slots, max(1, round(side["at_server_mean"])))
        on_core = steady_trace.replay(shape, works, ideal, options.pace(given), at_work, given.passes)
        found["core"] = {"cache": asdict(shape), "clients": at_work} | on_core
    _show(console, found)
    return found


def _refuse_longer(recorded: Recording, launches: Sequence[Launch], reserve: int) -> None:
    """TooLongError: a request does not fit what a server's command says."""
    for launch in launches:
        for option in ("--max-total-tokens", "--context-length"):
            text = _last(launch.command, option)
            if text is not None and text.isdecimal():
                recorded.refuse_longer(int(text) - reserve, f"{launch.name}: {option} {text}, less {reserve}")


def _last(command: Sequence[str], option: str) -> str | None:
    """What a command gives an option last, which is what counts."""
    found = None
    for index, word in enumerate(command):
        if word == option and index + 1 < len(command):
            found = command[index + 1]
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


def _of_servers(
    plan: steady_serve.Plan,
    load: Load,
    measured: steady_serve.Measured,
    works: Sequence[Work],
    ideal: distances.Distances,
) -> dict[str, Any]:
    recorded = load.recorded
    last = {it["side"]: it for it in measured.passes if it["pass"] == plan.passes - 1}
    prompts = sum(it.prompt for it in works)
    servers, targets = {}, {}
    for start in measured.starts:
        name, total = start["side"], start["total_tokens"]
        servers[name] = it = {"total_tokens": total} | last[name]
        it |= steady_trace.beside_ideal(it["hit_rate"], ideal, total, prompts)
        if "counters" in it:
            targets[f"{name}: cached share at {total:,} tokens, from the ideal one"] = steady_trace.target(it)
    return {
        "trace": {
            "name": recorded.name,
            "requests": len(works),
            "skipped": recorded.skipped,
            "prompt_tokens": prompts,
            "output_tokens": sum(map(steady_trace.output_tokens, works)),
            "seconds": recorded.seconds if recorded.timed else None,
        },
        "clients": load.clients,
        "speed": load.speed,
        "count_of_passes": plan.passes,
        "sides": steady_serve.sides(plan.launches),
        "passes": measured.passes,
        "starts": measured.starts,
        "servers": servers,
        "drivers": {name: steady_serve.drivers([it]) for name, it in servers.items() if "counters" in it},
        "targets": targets,
    }


def _core_side(servers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The side that the core plays the part of: the first one with virtual tensors, or else the first."""
    return next((it for it in servers.values() if "counters" in it), next(iter(servers.values())))


def _show(console: Console, found: dict[str, Any]) -> None:
    console.print(steady_served_table.load(found), highlight=False)
    header, rows = steady_served_table.servers(found)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    steady_serve.show_drivers(console, found["drivers"])
    if core := found.get("core"):
        console.print(steady_served_table.core(core), highlight=False)
        steady_trace.show(console, [core])
