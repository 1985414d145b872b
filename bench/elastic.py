# SPDX-License-Identifier: Apache-2.0
"""Memory of the KV cache under a light load, once it is idle, and when the load returns.

    python bench/elastic.py [--model FOLDER] [--clients 8] [--first 2000] [--json bench/results/elastic.json]

A stock server tells what it takes from the start. Then a server on virtual tensors, with --vtensor-idle-trim, plays a
load: `--clients` conversations of one turn, the prefix cache flushed before each run, so that every run computes the
same. After the first runs it is left alone until its memory is given back; then the load returns, and what it takes
longer than before is what creating and mapping the pages costs.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import positive, short, write_json
from rich.console import Console
from rich.table import Table
from serve_load import Load, vocabulary
from serve_run import INSTALLED_ALONE, MeasuringError

from vt_sglang import machine
from vt_sglang.chat import launch, toy_model
from vt_sglang.chat.client import Client
from vt_sglang.chat.launch import Launch, ServerOptions
from vt_sglang.chat.measure import summarize
from vt_sglang.chat.memory import kv_bytes
from vt_sglang.chat.play import play
from vt_sglang.chat.run import CPU_TOTAL_TOKENS, LEAST_RUNNING_REQUESTS, TOY_MODEL
from vt_sglang.chat.runs import cancel_on_signals
from vt_sglang.chat.server import Server, ServerError
from vt_sglang.chat.sides import split_words

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    stock: Launch
    vtensor: Launch
    load: Load
    runs: int
    vocabulary: int
    idle_trim_s: float
    logs: Path
    timeout_s: float


class Subject:
    """A server at work."""

    def __init__(self, plan: Plan, server: Server) -> None:
        self._plan, self._server, self._number = plan, server, 0

    async def kv_bytes(self) -> int:
        taken = kv_bytes(await self._server.info())
        if taken is None:
            raise MeasuringError(f"{self._server.launch.name} does not tell what its KV cache takes")
        return taken

    async def run(self) -> dict[str, Any]:
        """One run of the load from an empty prefix cache."""
        self._number += 1
        workload = self._plan.load.draw(self._plan.vocabulary, f"run {self._number}")
        async with Client(self._server.url, self._plan.timeout_s) as client:
            played = await play(
                workload.scripts, client, clients=workload.clients, output_tokens=workload.output_tokens
            )
        if errors := [it.error for it in played.requests if it.error is not None]:
            raise MeasuringError(f"{self._server.launch.name}: {errors[0]}")
        figures = {"seconds": played.seconds} | asdict(summarize(played)) | {"kv_bytes": await self.kv_bytes()}
        if wrong := await self._server.forget(workload.scripts[0].turns[0].question, self._plan.timeout_s):
            raise MeasuringError(f"{self._server.launch.name}: {wrong}")
        return figures

    async def given_back(self, page_bytes: int) -> float:
        """Seconds until nothing is left but a page."""
        begun = time.perf_counter()
        while await self.kv_bytes() > page_bytes:
            if time.perf_counter() - begun > self._plan.idle_trim_s + self._plan.timeout_s:
                raise MeasuringError("the memory is not given back")
            await asyncio.sleep(0.1)
        return time.perf_counter() - begun

    async def page_bytes(self) -> int:
        """What stays: the page for padding."""
        info = await self._server.info() or {}
        return int(info["internal_states"][0]["vtensor"]["page_bytes"])


async def measure(plan: Plan) -> dict[str, Any]:
    """All figures, in bytes and seconds.

    Raises:
        ServerError: a server did not start.
        MeasuringError: something went wrong in a run.
    """
    cancel_on_signals()
    async with Server(plan.stock, plan.logs / "elastic-stock.log", plan.timeout_s) as server:
        stock = await Subject(plan, server).kv_bytes()
    async with Server(plan.vtensor, plan.logs / "elastic-vtensor.log", plan.timeout_s) as server:
        subject = Subject(plan, server)
        found: dict[str, Any] = {"stock_kv_bytes": stock, "start_kv_bytes": await subject.kv_bytes()}
        found["warm_up"] = [await subject.run() for _ in range(2)]
        found["warm"] = [await subject.run() for _ in range(plan.runs)]
        found["returning"], found["trimmed_kv_bytes"], found["trim_s"] = [], [], []
        for _ in range(plan.runs):
            found["trim_s"].append(await subject.given_back(await subject.page_bytes()))
            found["trimmed_kv_bytes"].append(await subject.kv_bytes())
            found["returning"].append(await subject.run())
    for name in ("warm", "returning"):
        found[f"{name}_s"] = statistics.median(run["seconds"] for run in found[name])
    found["longer_s"] = found["returning_s"] - found["warm_s"]
    found["load_kv_bytes"] = max(run["kv_bytes"] for run in found["warm"])
    return found


def show(console: Console, found: dict[str, Any]) -> None:
    """Against what stock takes, and what the return of the load costs."""
    stock = found["stock_kv_bytes"]
    table = Table("KV cache", "GiB", "of stock's")
    rows = {
        "stock, always": stock,
        "vtensor, started": found["start_kv_bytes"],
        "vtensor, under load": found["load_kv_bytes"],
        "vtensor, given back": max(found["trimmed_kv_bytes"]),
    }
    for name, taken in rows.items():
        table.add_row(name, f"{taken / GIB:.3f}", f"{taken / stock:.2%}")
    console.print(table)
    console.print(
        f"a run takes {found['warm_s']:.3f} s, and {found['longer_s']:+.3f} s when its memory was given back before; "
        f"less memory under load: {1 - found['load_kv_bytes'] / stock:.2%}",
        highlight=False,
    )


def _plan(argv: Sequence[str] | None = None) -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder; default: the toy model of vt-sglang chat")
    parser.add_argument("--clients", type=positive, default=8)
    parser.add_argument("--first", type=positive, default=2000, metavar="TOKENS")
    parser.add_argument("--output", type=positive, default=128, metavar="TOKENS")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--idle-trim", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--server-args", default="", metavar="ARGUMENTS", help="for both servers")
    parser.add_argument(
        "--stock-args",
        metavar="ARGUMENTS",
        help="for the stock server; default: --attention-backend fa3, or torch_native on a CPU",
    )
    parser.add_argument(
        "--max-total-tokens", type=positive, metavar="TOKENS", help="default: what SGLang finds memory for"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--logs", type=Path, default=Path("report"), metavar="FOLDER")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    if given.idle_trim <= 0:
        parser.error("--idle-trim: without idle time nothing is given back; give some seconds")
    try:
        return _made(given), given.json
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _made(given: argparse.Namespace) -> Plan:
    """ValueError, OSError: it cannot be done."""
    on_gpu = bool(machine.gpus().names)
    load = Load(given.clients, 1, 0, given.first, 0, given.output)
    options = ServerOptions(
        model_path=str(given.model or TOY_MODEL),
        device="cuda" if on_gpu else "cpu",
        context_length=2 * load.longest_tokens,
        max_total_tokens=given.max_total_tokens or (None if on_gpu else CPU_TOTAL_TOKENS),
        max_running_requests=max(given.clients, LEAST_RUNNING_REQUESTS),
        chunked_prefill_size=None,
        extra=split_words("--server-args", given.server_args),
    )
    given.logs.mkdir(parents=True, exist_ok=True)
    if given.model is None:
        toy_model.ensure(TOY_MODEL)
    attention = f"--attention-backend {'fa3' if on_gpu else 'torch_native'}"
    stock_args = attention if given.stock_args is None else given.stock_args
    stock = launch.named("stock", options, split_words("--stock-args", stock_args))
    flags = ["--radix-cache-backend", "vtensor", "--vtensor-idle-trim", str(given.idle_trim)]
    vtensor = launch.named("vtensor", options, flags)
    stock, vtensor = (replace(it, environment=it.environment | INSTALLED_ALONE) for it in (stock, vtensor))
    return Plan(
        stock,
        vtensor,
        load,
        given.runs,
        vocabulary(Path(options.model_path)),
        given.idle_trim,
        given.logs,
        given.timeout,
    )


def main() -> None:
    plan, file = _plan()
    try:
        found = asyncio.run(measure(plan))
    except (MeasuringError, ServerError) as error:
        sys.exit(f"bench/elastic.py: {error}")
    except (asyncio.CancelledError, KeyboardInterrupt):  # the servers are stopped
        sys.exit("bench/elastic.py: interrupted")
    show(Console(width=130), found)
    if file:
        sides = [
            {"name": it.name, "command": [short(word) for word in it.command]} for it in (plan.stock, plan.vtensor)
        ]
        write_json(file, {"sides": sides, "load": asdict(plan.load), "idle_trim_s": plan.idle_trim_s} | found)


if __name__ == "__main__":
    main()
