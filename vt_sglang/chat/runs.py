# SPDX-License-Identifier: Apache-2.0
"""The runs of a comparison: servers started, warmed up, flushed, played on and looked after, in alternating order."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from vt_sglang.chat import memory
from vt_sglang.chat.client import Client
from vt_sglang.chat.endpoint import Endpoint, ServerError
from vt_sglang.chat.judge import SearchPlan, judge
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.pace import Pace
from vt_sglang.chat.play import Played, play
from vt_sglang.chat.result import Result, examine, leaks_in
from vt_sglang.chat.saturate import Probe, Search, search
from vt_sglang.chat.server import Server
from vt_sglang.chat.workload import Workload

# SGLang checks its memory when nothing is left to do.
IDLE_S = 1.0


@dataclass(frozen=True)
class Plan:
    launches: Sequence[Launch]
    workload: Callable[[int], Workload]
    """What is played in a repeat."""
    folder: Path
    """Where the servers' logs go."""
    timeout_s: float
    """Seconds that a start, and any one answer, may take."""
    repeats: int = 1
    together: bool = False
    warm_up: int = 0
    """Dialogues."""
    sample_s: float = 0.0


def cancel_on_signals() -> None:
    """Let SIGTERM and SIGHUP cancel the running task, so that it stops its servers."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def order(launches: Sequence[Launch], repeat: int) -> list[Launch]:
    """By turns, each repeat beginning one further on (A B, B A, A B, ...): none is always first, or always just after
    the same other one has warmed the machine."""
    first = repeat % len(launches)
    return [*launches[first:], *launches[:first]]


async def play_all(plan: Plan, progress: Progress, results: list[Result], asked: SearchPlan | None = None) -> None:
    """Play every repeat on every server, or search on each.

    Servers are started anew for every run, or once and side by side; those that run already are never started.

    Args:
        results: gets a run as soon as it is done.

    Raises:
        ServerError: a server did not start, or does not forget.
    """
    cancel_on_signals()
    async with AsyncExitStack() as stack:
        subjects: dict[str, _Subject] = {}
        if plan.together:
            for launch in plan.launches:
                subjects[launch.name] = await stack.enter_async_context(_subject(plan, launch, "", progress))
        for repeat in range(plan.repeats):
            for launch in order(plan.launches, repeat):
                number = f"-{repeat}" if plan.repeats > 1 else ""
                async with AsyncExitStack() as short:
                    subject = subjects.get(launch.name)
                    if subject is None:
                        subject = await short.enter_async_context(_subject(plan, launch, number, progress))
                    if asked:
                        result = await subject.search(asked)
                    else:
                        result = await subject.run(plan.workload(repeat))
                    results.append(replace(result, repeat=repeat, order=len(results)))
                    subject.results.append(results[-1])


@asynccontextmanager
async def _subject(plan: Plan, launch: Launch, number: str, progress: Progress) -> AsyncIterator["_Subject"]:
    """A server that is ready; after it has been stopped, its log is searched."""
    log = plan.folder / f"{launch.name}{number}.log"
    server = Endpoint(launch, launch.url) if launch.url else Server(launch, log, plan.timeout_s)
    bar = progress.add_task(f"{launch.name}: starting", total=None)
    subject = _Subject(plan, server, progress, bar)
    try:
        async with server:
            what = f"at {launch.url}" if launch.url else f"ready after {server.start_s:.1f} s, log in {log}"
            progress.console.print(f"{launch.name}: {what}", soft_wrap=True)
            yield subject
            progress.update(bar, description=f"{launch.name}: stopping")
    finally:
        progress.remove_task(bar)
        if subject.results and not launch.url:
            subject.results[-1].leaks += leaks_in(log)


class _Subject:
    """A server that is measured."""

    def __init__(self, plan: Plan, server: Endpoint, progress: Progress, bar: TaskID) -> None:
        self.results: list[Result] = []
        self._plan = plan
        self._server = server
        self._progress = progress
        self._bar = bar
        self._prompt: list[int] | None = None
        """The first prompt that was played last."""
        self._fresh = server.launch.url is None
        """Whether nothing has been played since the server started."""

    async def run(self, workload: Workload) -> Result:
        name = self._server.launch.name
        flushed = await self._prepare(workload)
        samples, played = await self._play(workload)
        self._progress.console.print(f"{name}: played {len(played.requests)} requests in {played.seconds:.1f} s")
        return await self._look_after(played, flushed, samples)

    async def search(self, asked: SearchPlan) -> Result:
        """Find the highest load. The result is that of the best probe, or of the last one if none passed."""
        best: Played | None = None
        name, unit = self._server.launch.name, "clients" if asked.whole else "a second"

        async def probe(load: float, attempt: int) -> Probe:
            nonlocal best
            workload = asked.probe(load, attempt)
            await self._prepare(workload)
            _, played = await self._play(workload)
            found = judge(asked, load, attempt, workload, played)
            if any(request.error is not None for request in played.requests):
                found = replace(found, lost=not await self._server.healthy())
            said = "passed" if found.passed else f"failed: {'; '.join(found.reasons)}"
            self._progress.console.print(f"{name}: {load:.4g} {unit}: {said}", soft_wrap=True, highlight=False)
            if found.passed or best is None or state.highest is None:
                best = played
            return found

        state = Search()
        await search(
            probe,
            start=asked.start,
            whole=asked.whole,
            tolerance=asked.asked.tolerance,
            max_probes=asked.asked.max_probes,
            found=state,
        )
        assert best is not None
        return replace(await self._look_after(best, None, []), search=state)

    async def _prepare(self, workload: Workload) -> bool | None:
        """Warm up if the server has done nothing yet, and have it forget what it knows. Whether it did; None if there
        was nothing to forget."""
        if self._fresh and not self._plan.warm_up:
            return None
        if self._fresh:
            few = replace(workload, scripts=workload.scripts[: self._plan.warm_up], pace=Pace())
            await self._play(few)
        if self._prompt is None:
            wrong = None if await self._server.flush_cache() else "the cache could not be flushed"
        else:
            wrong = await self._server.forget(self._prompt, self._plan.timeout_s)
        if wrong is None:
            return True
        message = f"{self._server.launch.name}: {wrong}"
        if self._server.launch.url is None:
            raise ServerError(message)
        self._progress.console.print(f"Warning: {message}", soft_wrap=True)
        return False

    async def _play(self, workload: Workload) -> tuple[list[dict[str, Any]], Played]:
        self._progress.reset(self._bar, total=workload.requests, description=f"{self._server.launch.name}: playing")
        self._fresh = False
        self._prompt = next((script.turns[0].question for script in workload.scripts if script.turns), None)
        samples: list[dict[str, Any]] = []
        watch = None
        if self._plan.sample_s:
            watch = asyncio.create_task(memory.watch(self._server, self._plan.sample_s, samples))
        try:
            # New connections: servers close those that are idle for some seconds, as while others are at work.
            async with Client(self._server.url, self._plan.timeout_s) as client:
                played = await play(
                    workload.scripts,
                    client,
                    clients=workload.clients,
                    output_tokens=workload.output_tokens,
                    pace=workload.pace,
                    on_request=lambda _: self._progress.advance(self._bar),
                )
        finally:
            if watch is not None:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
        return samples, played

    async def _look_after(self, played: Played, flushed: bool | None, samples: list[dict[str, Any]]) -> Result:
        await asyncio.sleep(IDLE_S)
        result = await examine(self._server, played)
        return replace(result, flushed=flushed, memory=samples)
