# SPDX-License-Identifier: Apache-2.0
"""The runs of a serving benchmark: servers started, warmed up, flushed, measured and looked after."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from serve_load import Load
from serve_memory import Memory

from vt_sglang.chat import runs as chat_runs
from vt_sglang.chat.client import Client
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.measure import summarize
from vt_sglang.chat.memory import kv_bytes
from vt_sglang.chat.play import Played, play
from vt_sglang.chat.result import examine, leaks_in
from vt_sglang.chat.server import Server
from vt_sglang.chat.workload import Workload

SHOWN_ERRORS = 5
# Servers import what is installed, also where the current folder has a package of that name: the source, not compiled.
INSTALLED_ALONE = {"PYTHONSAFEPATH": "1"}


class MeasuringError(Exception):
    """Figures would be worthless: a request failed, a cache could not be flushed, or a server leaked."""


@dataclass(frozen=True)
class Plan:
    launches: Sequence[Launch]
    loads: Sequence[Load]
    repeats: int
    """Starts of each server."""
    runs_per_start: int
    """Measured runs of each load in every start."""
    together: bool
    """Whether all servers run side by side, of which one at a time has anything to do."""
    on_gpu: bool
    vocabulary: int
    seed: int
    logs: Path
    """Folder for the servers' logs; must exist."""
    timeout_s: float
    """Seconds that a start, and any one answer, may take."""


@dataclass
class Measured:
    """Plain types, as they go into the JSON."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)


async def measure(plan: Plan, measured: Measured, console: Console) -> None:
    """Run all, adding to `measured` what is known as soon as it is.

    Raises:
        ServerError: a server did not start.
        MeasuringError: something went wrong in a run.
    """
    chat_runs.cancel_on_signals()
    groups = [plan.launches] if plan.together else [[launch] for launch in plan.launches]
    for repeat in range(plan.repeats):
        for group in groups:
            await _measure_group(plan, group, repeat, measured, console)


async def _measure_group(
    plan: Plan, group: Sequence[Launch], repeat: int, measured: Measured, console: Console
) -> None:
    """One start of some servers, and their runs by turns."""
    subjects: list[_Subject] = []
    try:
        async with AsyncExitStack() as stack:
            for launch in group:
                memory = Memory(on_gpu=plan.on_gpu)
                log = plan.logs / f"serve-{launch.name}-{repeat}.log"
                server = await stack.enter_async_context(Server(launch, log, plan.timeout_s))
                subject = _Subject(server, memory, repeat, plan.timeout_s)
                subjects.append(subject)
                measured.starts.append(subject.start)
                await subject.see_idle()
                console.print(f"{launch.name}: ready after {server.start_s:.1f} s", highlight=False)
            for load in plan.loads:
                await _measure_load(plan, load, subjects, repeat, measured, console)
            for subject in subjects:
                await subject.see_end()
    finally:
        for subject in subjects:
            subject.start["leaks"] += leaks_in(subject.log)
    if leaks := [leak for subject in subjects for leak in subject.start["leaks"]]:
        raise MeasuringError("; ".join(leaks))


async def _measure_load(
    plan: Plan, load: Load, subjects: Sequence["_Subject"], repeat: int, measured: Measured, console: Console
) -> None:
    """A warm-up and the runs of one load, every run on all servers before the next run."""
    for subject in subjects:
        await subject.warm_up(load.draw(plan.vocabulary, f"{plan.seed}, start {repeat}, warm-up"))
    for number in range(plan.runs_per_start):
        workload = load.draw(plan.vocabulary, f"{plan.seed}, start {repeat}, run {number}")
        for subject in subjects:
            figures = await subject.measure(workload)
            place = {"side": subject.name, "load": load.name, "repeat": repeat, "run": number}
            measured.runs.append(place | figures)
            console.print(_line(measured.runs[-1]), highlight=False, soft_wrap=True)
            if errors := figures["errors"]:
                raise MeasuringError(f"{subject.name}, {load.name}: {'; '.join(errors)}")


class _Subject:
    """A server that is measured. Others may be at work between two calls, and not during one."""

    def __init__(self, server: Server, memory: Memory, repeat: int, timeout_s: float) -> None:
        self.name = server.launch.name
        self.log = server.log
        self.start: dict[str, Any] = {"side": self.name, "repeat": repeat, "start_s": server.start_s, "leaks": []}
        """What is known of this start of the server; grows."""
        self._server = server
        self._memory = memory
        self._timeout_s = timeout_s
        self._last: Workload | None = None
        """What was played last."""

    async def see_idle(self) -> None:
        """Read the memory of the server as it has just started."""
        await self._see("idle")

    async def warm_up(self, workload: Workload) -> None:
        """Play without measuring, but for the memory: asking the driver for that would disturb a measured run."""
        self._memory.resume()
        await self._forget()
        end = asyncio.Event()
        watch = asyncio.create_task(self._memory.watch(self._server, end))
        try:
            played = await self._play(workload)
        finally:
            end.set()
            await watch
        if errors := _errors(workload, played):
            raise MeasuringError(f"{self.name}, warm-up: {'; '.join(errors)}")
        await self._see("after")

    async def measure(self, workload: Workload) -> dict[str, Any]:
        """Play from an empty cache. Returns the run's figures, among them what went wrong."""
        self._memory.resume()
        await self._forget()
        played = await self._play(workload)
        await self._see("after")
        summary = summarize(played)
        errors = _errors(workload, played)
        return {"seconds": played.seconds} | asdict(summary) | {"errors": errors}

    async def see_end(self) -> None:
        """Look after the server, which has nothing left to do."""
        await asyncio.sleep(chat_runs.IDLE_S)
        result = await examine(self._server, Played())
        self.start |= {"total_tokens": result.total_tokens, "vtensor": result.vtensor}
        self.start["leaks"] += result.leaks

    async def _play(self, workload: Workload) -> Played:
        self._last = workload
        async with self._client() as client:
            return await play(workload.scripts, client, clients=workload.clients, output_tokens=workload.output_tokens)

    def _client(self) -> Client:
        """With new connections: servers close those that are idle for some seconds, as while others are at work."""
        return Client(self._server.url, self._timeout_s)

    async def _forget(self) -> None:
        """Flush the cache, and make sure that a prompt of what was played last finds nothing there any more."""
        if self._last is None:
            return
        if wrong := await self._server.forget(self._last.scripts[0].turns[0].question, self._timeout_s):
            raise MeasuringError(f"{self.name}: {wrong}")

    async def _see(self, moment: str) -> None:
        self.start[f"{moment}_bytes"] = self._memory.read(self._server)
        self.start[f"kv_{moment}_bytes"] = kv_bytes(await self._server.info())
        self.start |= {"peak_bytes": self._memory.peak, "memory_of": self._memory.how}


def _errors(workload: Workload, played: Played) -> list[str]:
    errors = [request.error for request in played.requests if request.error is not None]
    missing = workload.requests - len(played.requests)
    more = [f"{len(errors) - SHOWN_ERRORS} more failed"] if len(errors) > SHOWN_ERRORS else []
    return errors[:SHOWN_ERRORS] + more + ([f"{missing} not played"] if missing else [])


def _line(run: dict[str, Any]) -> str:
    rate, ttft, gap = (run[key] or 0.0 for key in ("output_tokens_per_s", "ttft_p50_ms", "inter_token_p50_ms"))
    return (
        f"{run['side']}, {run['load']}, start {run['repeat'] + 1}, run {run['run'] + 1}: {rate:,.1f} tokens/s, "
        f"TTFT p50 {ttft:,.1f} ms, inter-token p50 {gap:,.2f} ms"
    )
