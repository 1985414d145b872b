# SPDX-License-Identifier: Apache-2.0
"""Passes of a load on servers, side by side or one after the other, and what their drivers did in each pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from common import short
from rich.console import Console
from rich.table import Table
from serve_run import MeasuringError
from steady_causes import by_cause, difference
from steady_load import Order, Steady

from vt_sglang.chat import runs as chat_runs
from vt_sglang.chat.client import Answer, Client, RequestError
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.measure import answered_requests, summarize
from vt_sglang.chat.play import Played, Request
from vt_sglang.chat.result import examine, leaks_in
from vt_sglang.chat.server import Server


@dataclass(frozen=True)
class Plan:
    launches: Sequence[Launch]
    passes: int
    play: Callable[[Server, Client, int], Awaitable[Played]]
    """Plays a pass, by its number; MeasuringError: it cannot be played on that server."""
    together: bool
    """Whether all servers run side by side, of which one at a time has anything to do."""
    logs: Path
    """Folder for the servers' logs; must exist."""
    timeout_s: float
    """Seconds that a start, and any one answer, may take."""


@dataclass
class Measured:
    """Plain types, as they go into the JSON."""

    passes: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)


async def measure(plan: Plan, measured: Measured, console: Console) -> None:
    """Run all, adding to `measured` what is known as soon as it is.

    Raises:
        ServerError: a server did not start.
        MeasuringError: a request failed, a server leaked, or it cannot play the load.
    """
    chat_runs.cancel_on_signals()
    for group in [plan.launches] if plan.together else [[launch] for launch in plan.launches]:
        async with AsyncExitStack() as stack:
            servers = []
            for launch in group:
                log = plan.logs / f"steady-{launch.name}.log"
                servers.append(await stack.enter_async_context(Server(launch, log, plan.timeout_s)))
                console.print(f"{launch.name}: ready after {servers[-1].start_s:.1f} s", highlight=False)
            for number in range(plan.passes):
                for server in servers:
                    figures = await one_pass(server, plan, number)
                    measured.passes.append({"side": server.launch.name, "pass": number} | figures)
                    console.print(_line(measured.passes[-1]), highlight=False, soft_wrap=True)
                    if errors := figures["errors"]:
                        raise MeasuringError(f"{server.launch.name}: {errors[0]}")
            await asyncio.sleep(chat_runs.IDLE_S)
            for server in servers:
                seen = await examine(server, Played())
                leaks = seen.leaks + leaks_in(server.log)
                measured.starts.append(
                    {
                        "side": server.launch.name,
                        "start_s": server.start_s,
                        "total_tokens": seen.total_tokens,
                        "vtensor": seen.vtensor,
                        "leaks": leaks,
                    }
                )
                if leaks:
                    raise MeasuringError("; ".join(leaks))


async def one_pass(server: Server, plan: Plan, number: int) -> dict[str, Any]:
    """Play a pass on a server that has whatever the passes before left in it."""
    before = await vtensor_state(server)
    async with Client(server.url, plan.timeout_s) as client:
        played = await plan.play(server, client, number)
    after = await vtensor_state(server)
    figures = {"seconds": played.seconds} | asdict(summarize(played)) | at_work(played)
    figures["errors"] = sorted({it.error for it in played.requests if it.error is not None})
    if before is None or after is None:
        return figures
    counters = difference(before["counters"], after["counters"])
    tokens = figures["prompt_tokens"] + figures["output_tokens"]
    return figures | {
        "counters": counters,
        "causes": by_cause(counters, after["page_bytes"] / after["token_bytes"]),
        "driver_calls_per_1000_tokens": 1e3 * counters["driver_calls"] / tokens if tokens else None,
        "pages_moved_per_1000_tokens": 1e3 * counters["pages_moved"] / tokens if tokens else None,
        "shares": {name: spent / 1e9 / played.seconds for name, spent in counters.items() if name.endswith("_ns")},
    }


async def vtensor_state(server: Server) -> dict[str, Any] | None:
    """What a server tells of its virtual tensors; None if it has none."""
    info = await server.info() or {}
    found = (info.get("internal_states") or [{}])[0].get("vtensor")
    return None if found is None or "driver_calls" not in found["counters"] else dict(found)


def at_work(played: Played) -> dict[str, float | int]:
    """How loaded a server was by the requests that it answered: how many it had on average and at the most, and of
    these on average those without a first token yet, which waited or whose prompts were computed."""
    answered = answered_requests(played)
    spans = [(it.start_s, it.start_s + it.answer.latency_ms / 1e3) for it in answered]
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    seconds = played.seconds or 1.0
    return {
        "at_server_mean": sum(end - start for start, end in spans) / seconds,
        "at_server_most": max(accumulate(change for _, change in changes), default=0),
        "before_first_token_mean": sum(it.answer.ttft_ms for it in answered) / 1e3 / seconds,
    }


async def play(client: Client, steady: Steady, vocabulary: int, number: int) -> Played:
    """A pass, by as many clients as the load has; what a request that failed belongs to ends with it."""
    order = Order(steady, number)
    said = [list(steady.said(vocabulary, number, it)) for it in range(steady.conversations)]
    history = {it: steady.system_prompt(vocabulary) for it in range(steady.conversations)}
    played = Played(began=time.perf_counter())

    def now() -> float:
        return time.perf_counter() - played.began

    async def one_client() -> None:
        conversation = order.first()
        while conversation is not None:
            turn = order.turn(conversation)
            prompt = history[conversation] + said[conversation][turn]
            start = now()
            try:
                answer = await client.generate(prompt, steady.load.output_tokens)
            except RequestError as error:
                played.requests.append(Request(conversation, turn, Answer(), str(error)))
                return
            played.requests.append(Request(conversation, turn, answer, None, start, start))
            history[conversation] = prompt + answer.output_ids
            conversation = order.after(conversation)

    async with asyncio.TaskGroup() as group:
        for _ in range(steady.load.clients):
            group.create_task(one_client())
    played.seconds = now()
    return played


def _line(figures: dict[str, Any]) -> str:
    text = (
        f"{figures['side']}, pass {figures['pass'] + 1}: {figures['output_tokens_per_s'] or 0:,.1f} tokens/s, "
        f"TTFT p50 {figures['ttft_p50_ms'] or 0:,.1f} ms, hit rate {figures['hit_rate'] or 0:.1%}"
    )
    if "counters" in figures:
        shares = ", ".join(f"{name} {share:.2%}" for name, share in figures["shares"].items())
        text += f", {figures['driver_calls_per_1000_tokens']:.4f} driver calls per 1,000 tokens, of the time: {shares}"
    return text


def drivers(passes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of a side's measured passes: sums of the counters, calls by 1,000 tokens in the worst pass, and the largest share
    of the time that the scheduler spent in or waiting for the driver.

    Where the core counts what the scheduler waited (`*wait*_ns`), that is its time; else all of the driver's is.
    """
    counters = {name: sum(it["counters"][name] for it in passes) for name in passes[0]["counters"]}
    waits = [name for name in passes[0]["shares"] if "wait" in name] or ["driver_ns"]
    return {
        "driver_calls_per_1000_tokens": max(it["driver_calls_per_1000_tokens"] for it in passes),
        "share": max(sum(it["shares"][name] for name in waits) for it in passes),
        "share_of": waits,
        "pages_moved_per_1000_tokens": max(it["pages_moved_per_1000_tokens"] for it in passes),
        "counters": counters,
        "causes": {cause: sum(it["causes"][cause] for it in passes) for cause in passes[0]["causes"]},
    }


def sides(launches: Sequence[Launch]) -> list[dict[str, Any]]:
    """What was started, without the folders that it lies in."""
    return [
        {"name": it.name, "command": [short(word) for word in it.command], "environment": it.environment}
        for it in launches
    ]


def show_drivers(console: Console, found: dict[str, Any]) -> None:
    """By side, what `drivers` returned."""
    for name, it in found.items():
        table = Table(f"{name}, all passes measured", "")
        for key, value in (it["causes"] | it["counters"]).items():
            table.add_row(key, f"{value:,}")
        console.print(table)
