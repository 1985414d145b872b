# SPDX-License-Identifier: Apache-2.0
"""The case `cold` on a server: the time to the first token of requests that share a long prefix.

A round has four requests with the same prefix, one that no round before had. The first computes it. The second goes on
in its slot, and decodes while the third comes: that one finds the whole prefix and has to be bound to another slot,
which maps nothing of it. The fourth comes when the third has ended, and takes its slot. So the third less the fourth is
what a cold bind takes.
"""

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from serve_run import MeasuringError
from steady_causes import by_cause, difference
from steady_serve import vtensor_state

from vt_sglang.chat.client import Answer, Client, RequestError
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.server import Server

KINDS = ("computed", "cold", "warm")
DECODED_SHARE = 0.1
"""Of the second request's tokens that the third waits for, by the time that the first one's took."""


@dataclass(frozen=True)
class Plan:
    launches: Sequence[Launch]
    prefix: int
    own: int
    """Tokens of each request after the prefix."""
    decoded: int
    """Tokens of the second request's answer; they must last longer than what comes meanwhile."""
    rounds: int
    """Measured; one more comes before them."""
    vocabulary: int
    seed: int
    logs: Path
    timeout_s: float


async def measure(plan: Plan, console: Console) -> list[dict[str, Any]]:
    """Rounds of all servers, one after the other.

    Raises:
        ServerError: a server did not start.
        MeasuringError: a request failed, or found not what it should.
    """
    found = []
    for launch in plan.launches:
        async with Server(launch, plan.logs / f"steady-cold-{launch.name}.log", plan.timeout_s) as server:
            console.print(f"{launch.name}: ready after {server.start_s:.1f} s", highlight=False)
            for number in range(-1, plan.rounds):
                try:
                    figures = await _round(server, plan, number)
                except RequestError as error:
                    raise MeasuringError(f"{launch.name}: {error}") from None
                if number >= 0:
                    found.append({"side": launch.name, "round": number} | figures)
    return found


async def _round(server: Server, plan: Plan, number: int) -> dict[str, Any]:
    drawn = random.Random(f"{plan.seed}, round {number}")

    def ids(count: int) -> list[int]:
        return [drawn.randrange(plan.vocabulary) for _ in range(count)]

    prefix = ids(plan.prefix)
    figures: dict[str, Any] = {}
    async with Client(server.url, plan.timeout_s) as client:

        async def ask(kind: str) -> None:
            before = await vtensor_state(server)
            answer = await client.generate(prefix + ids(plan.own), 2)
            after = await vtensor_state(server)
            figures[kind] = {"ttft_ms": answer.ttft_ms, "cached_tokens": answer.cached_tokens}
            if before is not None and after is not None:
                counters = difference(before["counters"], after["counters"])
                causes = by_cause(counters, after["page_bytes"] / after["token_bytes"])
                figures[kind] |= {"driver_ms": counters["driver_ns"] / 1e6, "causes": causes}
            if answer.cached_tokens < plan.prefix and kind != "computed":
                raise MeasuringError(
                    f"{server.launch.name}: {answer.cached_tokens:,} of {plan.prefix:,} tokens of the prefix were "
                    "cached: give the server more memory (--max-total-tokens)"
                )

        await ask("computed")
        second = asyncio.create_task(client.generate(prefix + ids(plan.own), plan.decoded))
        await asyncio.sleep(max(0.1, figures["computed"]["ttft_ms"] / 1e3 * DECODED_SHARE))
        await ask("cold")
        await ask("warm")
        overlapped = not second.done()
        answer: Answer = await second
    if not overlapped:
        raise MeasuringError(
            f"{server.launch.name}: the second request ended within {answer.latency_ms:,.0f} ms, before it was not "
            "needed any more: give more --turn-out"
        )
    return figures


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By side: medians, in ms; `cold_bind_ms` is the median difference of cold and warm of a round."""
    found: dict[str, Any] = {}
    for side in dict.fromkeys(it["side"] for it in rounds):
        own = [it for it in rounds if it["side"] == side]
        found[side] = {f"{kind}_ttft_ms": statistics.median(it[kind]["ttft_ms"] for it in own) for kind in KINDS}
        found[side]["cold_bind_ms"] = statistics.median(it["cold"]["ttft_ms"] - it["warm"]["ttft_ms"] for it in own)
        if "driver_ms" in own[0]["cold"]:
            for kind in KINDS:
                found[side][f"{kind}_driver_ms"] = statistics.median(it[kind]["driver_ms"] for it in own)
                for name, cause in (("driver_calls", "all"), ("pages_moved", "moved")):
                    found[side][f"{kind}_{name}"] = statistics.median(it[kind]["causes"][cause] for it in own)
    return found


def show(console: Console, found: dict[str, Any]) -> None:
    """Medians of all rounds."""
    table = Table("median", *found)
    for name in dict.fromkeys(key for side in found.values() for key in side):
        table.add_row(name.replace("_", " "), *(f"{it[name]:,.2f}" if name in it else "-" for it in found.values()))
    console.print(table)
