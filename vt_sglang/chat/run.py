# SPDX-License-Identifier: Apache-2.0
"""One comparison from start to end: dialogues, servers in turn, table, report."""

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vt_sglang import machine
from vt_sglang.chat import encoding, launch, report, toy_model
from vt_sglang.chat.client import Client
from vt_sglang.chat.compare import compare
from vt_sglang.chat.launch import Launch, ServerOptions
from vt_sglang.chat.play import play
from vt_sglang.chat.result import Result, examine, leaks_in
from vt_sglang.chat.server import Server
from vt_sglang.chat.settings import Device, Settings, Which
from vt_sglang.chat.table import table, verdicts
from vt_sglang.chat.workload import Workload, prepare

TOY_MODEL = Path(".cache/vt-sglang/toy-llama")
CPU_TOTAL_TOKENS = 32768
LEAST_RUNNING_REQUESTS = 8
CHUNKED_PREFILL_SIZE = 2048
# SGLang checks its memory when nothing is left to do.
IDLE_S = 1.0


class UsageError(ValueError):
    """What was asked for cannot be done."""


def run(settings: Settings, console: Console) -> int:
    """Do it all. Returns the exit status: 0, or 1 if outputs differ, a request failed or a server reported a leak.

    Raises:
        UsageError, DialogueError, EncodingError: nothing was started.
        ServerError: a server did not start.
    """
    options = server_options(settings)
    try:
        settings.report.parent.mkdir(parents=True, exist_ok=True)
        if settings.model_path is None and toy_model.ensure(TOY_MODEL):
            console.print(f"Wrote the toy model to {TOY_MODEL}")
    except OSError as error:
        raise UsageError(f"the report and the toy model need a place: {error}") from None
    most_tokens = min(options.context_length, options.max_total_tokens or options.context_length)
    workload = prepare(settings, encoding.for_model(options.model_path), most_tokens)
    if not workload.requests:
        raise UsageError(f"no turn with an answer of {settings.output_tokens} tokens fits {most_tokens} tokens")
    console.print(
        f"{len(workload.scripts)} dialogues, {workload.requests} requests, {workload.clients} clients, "
        f"model {options.model_path} on {options.device}",
        soft_wrap=True,
    )
    launches = chosen_launches(settings, options)
    try:
        results = asyncio.run(play_all(launches, workload, settings.report.parent, settings.timeout_s, console))
    except asyncio.CancelledError:  # SIGTERM or SIGHUP; the servers are stopped
        raise KeyboardInterrupt from None
    return conclude(results, workload, asdict(settings) | asdict(options), settings.report, console)


def server_options(settings: Settings) -> ServerOptions:
    """What both servers get. UsageError if there is no such device."""
    gpus = machine.gpus()
    if settings.device is Device.CUDA and not gpus.names:
        raise UsageError(f"--device cuda: {gpus.reason}")
    on_cpu = settings.device is Device.CPU or not gpus.names
    return ServerOptions(
        model_path=settings.model_path or str(TOY_MODEL),
        device="cpu" if on_cpu else "cuda",
        context_length=settings.context_length,
        max_total_tokens=settings.max_total_tokens or (CPU_TOTAL_TOKENS if on_cpu else None),
        max_running_requests=max(settings.clients, LEAST_RUNNING_REQUESTS),
        chunked_prefill_size=CHUNKED_PREFILL_SIZE,
        extra=settings.server_args,
    )


def chosen_launches(settings: Settings, options: ServerOptions) -> list[Launch]:
    """The servers to start, one after the other. UsageError if there is no SGLang."""
    if machine.installed("sglang") is None:
        raise UsageError("SGLang is not installed; vt-sglang doctor says how to get it")
    both = {
        Which.STOCK: launch.stock(options, settings.stock_args),
        Which.VTENSOR: launch.vtensor(options, settings.vtensor_args),
    }
    return [both[settings.only]] if settings.only else list(both.values())


def cancel_on_signals() -> None:
    """Let SIGTERM and SIGHUP cancel the running task, so that it stops its servers."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def play_all(
    launches: Sequence[Launch], workload: Workload, folder: Path, timeout_s: float, console: Console
) -> list[Result]:
    """Start each server, play the workload, look after it and stop it.

    Args:
        folder: where the servers' logs go.
        timeout_s: seconds that a start, and any one answer, may take.

    Raises:
        ServerError: a server did not start.
    """
    cancel_on_signals()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        return [await _play_one(launch, workload, folder, timeout_s, progress) for launch in launches]


async def _play_one(launch: Launch, workload: Workload, folder: Path, timeout_s: float, progress: Progress) -> Result:
    name, log = launch.name, folder / f"{launch.name}.log"
    bar = progress.add_task(f"{name}: starting", total=None)
    async with Server(launch, log, timeout_s) as server:
        progress.console.print(f"{name}: ready after {server.start_s:.1f} s, log in {log}", soft_wrap=True)
        progress.reset(bar, total=workload.requests, description=f"{name}: playing")
        async with Client(server.url, timeout_s) as client:
            played = await play(
                workload.scripts,
                client,
                clients=workload.clients,
                output_tokens=workload.output_tokens,
                on_request=lambda _: progress.advance(bar),
            )
        progress.console.print(f"{name}: played {len(played.requests)} requests in {played.seconds:.1f} s")
        progress.update(bar, description=f"{name}: idle")
        await asyncio.sleep(IDLE_S)
        result = await examine(server, played)
        progress.update(bar, description=f"{name}: stopping")
    progress.remove_task(bar)
    result.leaks += leaks_in(log)
    return result


def conclude(
    results: Sequence[Result], workload: Workload, parameters: dict[str, Any], path: Path, console: Console
) -> int:
    """Print the table and the verdicts, write the report. Returns the exit status."""
    comparison = None
    if len(results) == 2:
        comparison = compare(results[0].played, results[1].played, clients=workload.clients)
    failed = any(request.error is not None for result in results for request in result.played.requests)
    leaked = any(result.leaks for result in results)
    differs = comparison is not None and comparison.first_difference is not None
    exit_status = int(failed or leaked or differs)
    console.print(table(results))
    for line in verdicts(results, comparison, workload.requests, workload.lost_turns):
        console.print(line, soft_wrap=True, highlight=False)
    parameters |= {"planned_requests": workload.requests, "lost_turns": workload.lost_turns}
    report.write(path, parameters, results, comparison, exit_status)
    console.print(f"Report: {path}", soft_wrap=True)
    return exit_status
