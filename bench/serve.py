# SPDX-License-Identifier: Apache-2.0
"""Serving: the same conversations on several servers, one of them on virtual tensors.

    python bench/serve.py [--model FOLDER] [--system-prompt 0 --system-prompt 256] [--json bench/results/serve.json]

Each of `--clients` clients has one conversation of `--turns` turns and waits for every answer. It first says
`--system-prompt` tokens, the same for all, and `--first` of its own, then `--next` after each answer; every answer has
`--output` tokens. The ids are random; a run's are the same for all servers, and no two runs of a server have the same.
Outputs are not compared (weights may be dummies; `vt-sglang chat` compares). An answer of another length is an error.

What runs is a `--side NAME=ARGUMENTS`: SGLang's launch arguments for one server. It has the plug-in if the arguments
ask for virtual tensors. The first side is the one that the others are compared with.

    --repeats N         starts of every server, by turns: first, second, first, second, ...
    --runs-per-start M  measured runs of each load in every start; N x M runs in all
    --together          start all servers side by side, and let them run by turns, one at a time: with
                        `--repeats 1 --runs-per-start 3`, three alternating runs of a single start each

Every load is played once unmeasured in every start, so that what is compiled on first use is; the peak of the memory is
read in that run, since asking for it takes the processor's and the driver's time. Before each run the cache is flushed,
and a prompt of the run before must find nothing in it.

Servers side by side share the device's memory, and SGLang reckons with what is free when it starts: give the first side
less than half of the card (`--mem-fraction-static 0.45`), the second one most of the rest, and both the same
`--max-total-tokens`. On a card of 140 GB, a model of 8B parameters and dummy weights:

    python bench/serve.py --model bench/llama8b --system-prompt 0 --system-prompt 256 \\
        --together --repeats 1 --runs-per-start 3 --max-total-tokens 262144 \\
        --side "stock-fa3=--attention-backend fa3 --mem-fraction-static 0.45" \\
        --side "vtensor=--radix-cache-backend vtensor --mem-fraction-static 0.85" \\
        --server-args "--load-format dummy --sampling-backend pytorch --grammar-backend none --dtype bfloat16"

Servers that wait poll the processor; all have `--sleep-on-idle`, which lets them sleep, and a
machine should have some cores more than servers.

Exit status: 1 if a request failed, a server did not start, or one reported a leak; 2 if the options make no sense.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import natural, positive, short, write_json
from rich.console import Console
from rich.table import Table
from serve_compare import RUN_METRICS, START_METRICS, compare, goals, table
from serve_load import Load, vocabulary
from serve_run import INSTALLED_ALONE, Measured, MeasuringError, Plan, measure

from vt_sglang import machine
from vt_sglang.chat import launch, toy_model
from vt_sglang.chat.launch import ServerOptions
from vt_sglang.chat.run import CPU_TOTAL_TOKENS, LEAST_RUNNING_REQUESTS, TOY_MODEL
from vt_sglang.chat.server import ServerError
from vt_sglang.chat.sides import split_side, split_words

PIPED_WIDTH = 150
DEFAULT_SIDES = {
    "cuda": ("stock-fa3=--attention-backend fa3", "vtensor=--radix-cache-backend vtensor"),
    "cpu": ("stock-torch=--attention-backend torch_native", "vtensor=--radix-cache-backend vtensor"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    load = parser.add_argument_group("load")
    load.add_argument("--clients", type=positive, default=64)
    load.add_argument("--turns", type=positive, default=3)
    load.add_argument(
        "--system-prompt",
        type=natural,
        action="append",
        metavar="TOKENS",
        help="default: 0; a load for each",
    )
    load.add_argument("--first", type=positive, default=512, metavar="TOKENS")
    load.add_argument("--next", type=positive, default=128, metavar="TOKENS")
    load.add_argument("--output", type=positive, default=128, metavar="TOKENS")
    load.add_argument("--seed", type=int, default=0)
    load.add_argument("--repeats", type=positive, default=3, metavar="N")
    load.add_argument("--runs-per-start", type=positive, default=1, metavar="M")
    servers = parser.add_argument_group("servers")
    servers.add_argument(
        "--model", type=Path, help="folder with a config.json; default: the toy model of vt-sglang chat"
    )
    servers.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    servers.add_argument(
        "--side",
        action="append",
        metavar="NAME=ARGUMENTS",
        help=f"default: {' and '.join(map(repr, DEFAULT_SIDES['cuda']))}, or torch's attention on a CPU",
    )
    servers.add_argument("--server-args", default="", metavar="ARGUMENTS", help="for all; a single one after `=`")
    servers.add_argument("--together", action="store_true", help="all servers side by side, at work by turns")
    servers.add_argument("--context-length", type=positive, default=8192, metavar="TOKENS")
    servers.add_argument(
        "--max-total-tokens", type=positive, metavar="TOKENS", help=f"default: {CPU_TOTAL_TOKENS} on a CPU"
    )
    servers.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for a start, or one answer")
    parser.add_argument("--logs", type=Path, default=Path("report"), metavar="FOLDER")
    parser.add_argument("--json", type=Path)
    return parser


def plan(argv: Sequence[str] | None = None) -> tuple[Plan, Path | None]:
    """What the command line asks for, and where the result goes. Exits with status 2 if it makes no sense."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        return _plan(given), given.json
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _plan(given: argparse.Namespace) -> Plan:
    """ValueError, OSError: it cannot be done."""
    if machine.installed("sglang") is None:
        raise ValueError("SGLang is not installed; vt-sglang doctor says how to get it")
    gpus = machine.gpus()
    if given.device == "cuda" and not gpus.names:
        raise ValueError(f"--device cuda: {gpus.reason}")
    device = "cpu" if given.device == "cpu" or not gpus.names else "cuda"
    systems = given.system_prompt or [0]
    if len(set(systems)) < len(systems):
        raise ValueError("--system-prompt: the same one twice")
    loads = [Load(given.clients, given.turns, it, given.first, given.next, given.output) for it in systems]
    total_tokens = given.max_total_tokens or (CPU_TOTAL_TOKENS if device == "cpu" else None)
    room = min(given.context_length, total_tokens or given.context_length)
    if (longest := max(load.longest_tokens for load in loads)) > room:
        raise ValueError(f"a conversation needs {longest} tokens, but the servers have room for {room}")
    sides = dict(split_side("--side", text) for text in given.side or DEFAULT_SIDES[device])
    if len(sides) < len(given.side or sides):
        raise ValueError("--side: the same name twice")
    options = ServerOptions(
        model_path=str(given.model or TOY_MODEL),
        device=device,
        context_length=given.context_length,
        max_total_tokens=total_tokens,
        max_running_requests=max(given.clients, LEAST_RUNNING_REQUESTS),
        chunked_prefill_size=None,
        extra=("--sleep-on-idle", *split_words("--server-args", given.server_args)),
    )
    given.logs.mkdir(parents=True, exist_ok=True)
    if given.model is None:
        toy_model.ensure(TOY_MODEL)
    launches = [launch.named(name, options, arguments) for name, arguments in sides.items()]
    return Plan(
        launches=[replace(it, environment=it.environment | INSTALLED_ALONE) for it in launches],
        loads=loads,
        repeats=given.repeats,
        runs_per_start=given.runs_per_start,
        together=given.together,
        on_gpu=device == "cuda",
        vocabulary=vocabulary(Path(options.model_path)),
        seed=given.seed,
        logs=given.logs,
        timeout_s=given.timeout,
    )


def result(plan: Plan, measured: Measured) -> dict[str, Any]:
    """What is kept of a benchmark: the comparisons, and all that they are made from, without paths of this machine."""
    names = [launch.name for launch in plan.launches]
    loads = []
    for load in plan.loads:
        runs = {name: [it for it in measured.runs if (it["side"], it["load"]) == (name, load.name)] for name in names}
        rows = compare(RUN_METRICS, runs)
        loads.append({"name": load.name, "shape": asdict(load), "rows": rows, "reached": goals(rows)})
    starts = {name: [it for it in measured.starts if it["side"] == name] for name in names}
    return {
        "sides": [
            {"name": it.name, "command": [short(word) for word in it.command], "environment": it.environment}
            for it in plan.launches
        ],
        "repeats": plan.repeats,
        "runs_per_start": plan.runs_per_start,
        "together": plan.together,
        "seed": plan.seed,
        "loads": loads,
        "servers": compare(START_METRICS, starts),
        "runs": measured.runs,
        "starts": measured.starts,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    """Tables for a terminal, and for each load whether it reaches the goal."""
    for title, rows in (*((load["name"], load["rows"]) for load in result["loads"]), ("servers", result["servers"])):
        header, lines = table(rows)
        shown = Table(header[0], *header[1:], title=title, title_justify="left")
        for line in lines:
            shown.add_row(*line)
        console.print(shown)
    for load in result["loads"]:
        for name, reached in load["reached"].items():
            said = "cannot be told" if reached is None else "yes" if reached else "no"
            console.print(f"{load['name']}: {name} at least equal in output tokens/s and TTFT p50: {said}")


def main() -> None:
    asked, path = plan()
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    measured = Measured()
    wrong: str | None = None
    try:
        asyncio.run(measure(asked, measured, console))
    except (MeasuringError, ServerError) as error:
        wrong = str(error)
    except (asyncio.CancelledError, KeyboardInterrupt):  # the servers are stopped; what was measured is kept
        wrong = "interrupted"
    found = result(asked, measured) | {"error": wrong and short(wrong.splitlines()[0])}
    show(console, found)
    if path:
        write_json(path, found)
    if wrong is not None:
        sys.exit(f"bench/serve.py: {wrong}")


if __name__ == "__main__":
    main()
