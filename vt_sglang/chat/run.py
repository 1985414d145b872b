# SPDX-License-Identifier: Apache-2.0
"""One comparison from start to end: dialogues, servers in turn, table, report."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vt_sglang import machine
from vt_sglang.chat import encoding, launch, report, toy_model
from vt_sglang.chat.compare import Comparison, compare, merge
from vt_sglang.chat.endpoint import ServerError
from vt_sglang.chat.figures import figures
from vt_sglang.chat.files import check_writable, make_folder
from vt_sglang.chat.judge import SearchPlan
from vt_sglang.chat.launch import Launch, ServerOptions
from vt_sglang.chat.measure import Limits, summarize
from vt_sglang.chat.result import Result
from vt_sglang.chat.runs import Plan, play_all
from vt_sglang.chat.settings import Device, Settings, Side, Which
from vt_sglang.chat.table import figures_table, lateness, search_table, table, verdicts
from vt_sglang.chat.workload import Source, Workload

TOY_MODEL = Path(".cache/vt-sglang/toy-llama")
CPU_TOTAL_TOKENS = 32768
LEAST_RUNNING_REQUESTS = 8
OPEN_RUNNING_REQUESTS = 64
CHUNKED_PREFILL_SIZE = 2048


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
        check_writable(settings.report)
        make_folder(settings.report)  # servers' logs go there before the report does
    except OSError as error:
        raise UsageError(f"--report {settings.report}: {error.strerror}") from None
    try:
        if settings.model_path is None and toy_model.ensure(TOY_MODEL):
            console.print(f"Wrote the toy model to {TOY_MODEL}")
    except OSError as error:
        raise UsageError(f"the toy model needs a place: {error}") from None
    most_tokens = min(options.context_length, options.max_total_tokens or options.context_length)
    source = Source(settings, encoding.for_model(options.model_path), most_tokens)
    workload = source.workload()
    if not workload.requests:
        raise UsageError(f"no turn with an answer of {settings.output_tokens} tokens fits {most_tokens} tokens")
    skipped = f" ({source.skipped} entries of the file skipped)" if source.skipped else ""
    console.print(
        f"{len(workload.scripts)} dialogues{skipped}, {workload.requests} requests, {describe(settings)}, "
        f"model {options.model_path} on {options.device}",
        soft_wrap=True,
    )
    launches = chosen_launches(settings, options)
    results, ended_by = play(settings, source, launches, console)
    parameters = asdict(settings) | asdict(options) | {"skipped": source.skipped}
    return conclude(settings, results, workload, parameters, ended_by, console)


def describe(settings: Settings) -> str:
    """The load in words."""
    load = settings.load
    if load.rate is not None:
        return f"{load.rate:g} {load.rate_of.value} a second"
    if load.arrivals is not None:
        return f"arrivals of {load.arrivals.name}, {load.time_scale:g} times as fast"
    return f"{settings.clients} clients"


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
        max_running_requests=_running_requests(settings),
        chunked_prefill_size=CHUNKED_PREFILL_SIZE,
        extra=settings.server_args,
    )


def _running_requests(settings: Settings) -> int:
    """Requests that a server runs at a time: all that there can be in a closed loop; others may be any number."""
    if settings.saturation or settings.load.is_open:
        return max(settings.load.max_in_flight or OPEN_RUNNING_REQUESTS, settings.clients)
    return max(settings.clients, LEAST_RUNNING_REQUESTS)


def chosen_launches(settings: Settings, options: ServerOptions) -> list[Launch]:
    """The servers to compare, the reference first. UsageError if one is to be started and there is no SGLang."""
    if settings.sides:
        launches = [_launch(side, options) for side in settings.sides]
        if all(it.url for it in launches):
            return launches
    if machine.installed("sglang") is None:
        raise UsageError("SGLang is not installed; vt-sglang doctor says how to get it")
    if settings.sides:
        return launches
    both = {
        Which.STOCK: launch.stock(options, settings.stock_args),
        Which.VTENSOR: launch.vtensor(options, settings.vtensor_args),
    }
    return [both[settings.only]] if settings.only else list(both.values())


def _launch(side: Side, options: ServerOptions) -> Launch:
    if side.url:
        return Launch(side.name, [], url=side.url)
    return (launch.whole if launch.is_whole(side.words) else launch.named)(side.name, options, side.words)


def play(
    settings: Settings, source: Source, launches: Sequence[Launch], console: Console
) -> tuple[list[Result], str | None]:
    """Every run of every server, and what ended them before the last; None if nothing did.

    Raises:
        ServerError: the first server did not start.
    """
    results: list[Result] = []
    folder = settings.report.parent
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    plan = Plan(
        launches,
        source.workload,
        folder,
        settings.timeout_s,
        settings.repeats,
        settings.together,
        settings.warm_up,
        settings.sample_s,
    )
    search = None
    if settings.saturation:
        whole = not settings.load.is_open
        start = settings.load.rate or settings.clients
        search = SearchPlan(settings.saturation, limits(settings), start, whole, source.probe)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        try:
            asyncio.run(play_all(plan, progress, results, search))
        except ServerError as error:
            if len({result.launch.name for result in results}) < len(launches):
                raise
            return results, str(error)
        except asyncio.CancelledError:  # SIGTERM or SIGHUP; the servers are stopped
            raise KeyboardInterrupt from None
    return results, None


def limits(settings: Settings) -> Limits:
    return Limits(settings.ttft_limit_ms, settings.itl_limit_ms)


def conclude(
    settings: Settings,
    results: Sequence[Result],
    workload: Workload,
    parameters: dict[str, Any],
    error: str | None,
    console: Console,
) -> int:
    """Print tables and verdicts, write the report. Returns the exit status.

    Args:
        error: what ended the runs before the last; None if nothing did.
    """
    sides = by_side(results)
    comparisons = {} if settings.saturation else compare_sides(sides, settings)
    failed = not settings.saturation and any(
        it.error is not None for result in results for it in result.played.requests
    )
    leaked = any(result.leaks for result in results)
    # Other servers than the two that must say the same may well differ: in precision, in kernels, in the model.
    differs = not settings.sides and any(it.first_difference is not None for it in comparisons.values())
    exit_status = int(failed or leaked or differs or error is not None)
    figures = make_figures(sides, limits(settings)) if settings.repeats > 1 else None
    if settings.saturation:
        console.print(search_table(sides, settings))
    elif figures:
        console.print(figures_table(figures))
    else:
        console.print(table([runs[0] for runs in sides.values()], limits(settings)))
    planned = None if settings.saturation else workload.requests
    for line in verdicts(sides, comparisons, planned, workload.lost_turns, exact=not settings.sides):
        console.print(line, soft_wrap=True, highlight=False)
    if settings.load.is_open and not settings.saturation:
        for line in lateness(sides):
            console.print(line, soft_wrap=True, highlight=False)
    if settings.load.is_open:
        parameters["clients"] = None
    parameters |= {"planned_requests": workload.requests, "lost_turns": workload.lost_turns}
    report.write(settings, parameters, sides, comparisons, figures, error, exit_status)
    if error is not None:
        console.print(f"[red]Ended early: {escape(error)}[/]", soft_wrap=True, highlight=False)
    console.print(f"Report: {settings.report}", soft_wrap=True)
    return exit_status


def by_side(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each server, by name, in the order of the sides and of the repeats."""
    sides: dict[str, list[Result]] = {}
    for result in results:
        sides.setdefault(result.launch.name, []).append(result)
    return sides


def compare_sides(sides: dict[str, list[Result]], settings: Settings) -> dict[str, Comparison]:
    """What each server but the first said beside the first, by its name."""
    first, *others = sides.values()
    clients = None if settings.load.is_open else settings.clients
    return {
        other[0].launch.name: merge(
            [compare(one.played, two.played, clients=clients) for one, two in zip(first, other, strict=False)]
        )
        for other in others
    }


def make_figures(sides: dict[str, list[Result]], limits: Limits) -> list[dict[str, Any]]:
    return figures(
        {name: {run.repeat: asdict(summarize(run.played, limits)) for run in runs} for name, runs in sides.items()}
    )
