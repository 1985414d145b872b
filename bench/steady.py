# SPDX-License-Identifier: Apache-2.0
"""The memory driver in the steady state: how often it is called, and what that costs.

    python bench/steady.py core [--load again|returning] [--driver none|host|cuda] [--json FILE]
    python bench/steady.py again|returning [--model FOLDER] [--side NAME=ARGUMENTS]... [--together] [--json FILE]
    python bench/steady.py cold [--model FOLDER] [--prefix 32768] [--json FILE]
    python bench/steady.py trace TRACE [--capacity 0.2M,0.4M] [--clients 64] [--json FILE]
    python bench/steady.py served-trace TRACE [--clients 16 | --speed 10] [--side NAME=ARGUMENTS]... [--json FILE]

`again` is 64 clients with a conversation of 10 turns each under one system prompt, and then again with other
conversations, while memory is full of the old ones. `returning` is 500 conversations, 64 of them at work at a time,
whose next turns come in a random order, with memory for half of them; stock SGLang plays them too, with as much. The
conversations of every pass are new, and nothing is flushed between passes. Servers play first; then, when their memory
is free, the same load is played on the core alone (`--no-core`, `--no-server` leave one out).

`core` is only that: it makes the calls of a server's scheduler, without a model, and with the driver "none" without
memory too. It shows which call of the core made which of the driver's, and why.

`cold` is a long prefix that is recorded, and bound to slots that map nothing of it: what the driver takes until the
prefill can be launched, on the core, and on a server by the time to the first token.

`trace` is a recorded trace on the core alone, with many requests at work at a time, beside an ideal cache.

`served-trace` is such a trace on servers, one after the other, each beside an ideal cache of as many tokens as it has,
and then on the core: `--clients` at work at a time, or, by `--speed`, sent at the trace's own times divided by that,
whatever is still at the server (64 run there unless `--slots` says else; `--timeout` has to last for the wait, too).
`--limit` plays the beginning. A first pass fills memory, whose pages the driver makes; `--passes 2` measures a second.

On one card of 80 GB, with Llama-3-8B's shape and dummy weights, each takes some minutes:

    D="--load-format dummy --sampling-backend pytorch --grammar-backend none --dtype bfloat16"
    python bench/steady.py again --model llama8b --server-args "$D --mem-fraction-static 0.88"
    python bench/steady.py returning --model llama8b --together --server-args "$D" \\
        --side "stock-fa3=--attention-backend fa3 --mem-fraction-static 0.5" \\
        --side "vtensor=--radix-cache-backend vtensor --mem-fraction-static 0.88"
    python bench/steady.py cold --model llama8b --server-args "$D --mem-fraction-static 0.88"
    python bench/steady.py served-trace TRACE --limit 400 --speed 20 --model llama8b \\
        --server-args "$D --max-total-tokens 360000 --mem-fraction-static 0.88" \\
        --side "stock-fa3=--attention-backend fa3" --side "vtensor=--radix-cache-backend vtensor"

Exit status: 1 if a request failed, a server did not start or leaked, or memory did not suffice; 2 if the options make
no sense. Targets that are missed do not change it.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import steady_cases
import steady_options as options
import steady_served_trace
import steady_servers
import steady_trace
from common import positive, short
from rich.console import Console
from serve_run import MeasuringError
from steady_engine import TooSmallError

from vt_sglang._core import DriverError, OutOfPages
from vt_sglang.chat.files import check_writable, write_whole
from vt_sglang.chat.run import TOY_MODEL
from vt_sglang.chat.server import ServerError
from vt_sglang.result_file import header

PIPED_WIDTH = 150
CASES = {
    "core": steady_cases.core,
    "again": steady_cases.served,
    "returning": steady_cases.served,
    "cold": steady_cases.cold,
    "trace": steady_trace.run,
    "served-trace": steady_served_trace.run,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = parser.add_subparsers(dest="case", required=True)
    core = cases.add_parser("core", help="a load on the core alone")
    options.add_load(core)
    options.add_cache(core, "llama-3-8b")
    loads = []
    for name, text in (("again", "the load comes again"), ("returning", "more conversations than memory holds")):
        loads.append(cases.add_parser(name, help=text))
        options.add_load(loads[-1], name)
        options.add_cache(loads[-1], str(TOY_MODEL))
        steady_servers.add(loads[-1])
        loads[-1].add_argument("--together", action="store_true", help="all servers side by side, at work by turns")
    for case in (core, *loads):
        options.add_pace(case)
        case.add_argument("--check", action="store_true", help="prove the core's invariants after each pass")
    cold = cases.add_parser("cold", help="a long prefix where nothing of it is mapped")
    cold.add_argument("--prefix", type=positive, default=32768, metavar="TOKENS", help="default: %(default)s")
    cold.add_argument("--turn-in", type=positive, default=128, metavar="TOKENS", help="after it; default: %(default)s")
    cold.add_argument(
        "--turn-out", type=positive, default=512, metavar="TOKENS", help="decoded meanwhile; default: %(default)s"
    )
    cold.add_argument("--repeats", type=positive, default=16, help="cold binds on the core; default: %(default)s")
    cold.add_argument("--rounds", type=positive, default=5, help="on a server; default: %(default)s")
    cold.add_argument(
        "--copy-from",
        type=positive,
        default=256,
        metavar="PAGES",
        help="of a held prefix, from which on the core copies it to free pages; default: %(default)s",
    )
    cold.add_argument("--settle", type=_seconds, default=0.0, metavar="SECONDS", help="between binds on the core")
    cold.add_argument("--seed", type=int, default=0)
    options.add_cache(cold, str(TOY_MODEL), sized=False)
    steady_servers.add(cold)
    trace = cases.add_parser("trace", help="a recorded trace on the core alone, beside an ideal cache")
    trace.add_argument("trace", type=Path)
    trace.add_argument("--capacity", default="0.2M,0.4M,0.8M", help="several by commas; default: %(default)s")
    trace.add_argument("--clients", type=positive, default=64, help="default: %(default)s")
    trace.add_argument("--passes", type=positive, default=1, help="default: %(default)s")
    trace.add_argument("--slots", type=positive, help="default: two a client")
    options.add_cache(trace, "llama-3-8b", sized=False)
    options.add_pace(trace)
    served = cases.add_parser("served-trace", help="a recorded trace on servers, beside an ideal cache")
    served.add_argument("trace", type=Path)
    paces = served.add_mutually_exclusive_group()
    paces.add_argument("--clients", type=positive, help=f"at work at a time; default: {steady_served_trace.CLIENTS}")
    paces.add_argument("--speed", type=_speed, metavar="X", help="send at the trace's times, divided by X")
    served.add_argument("--limit", type=positive, metavar="REQUESTS", help="the first ones of the trace alone")
    served.add_argument("--skip-longer", type=positive, metavar="TOKENS", help="leave out what has more, answers too")
    served.add_argument("--passes", type=positive, default=1, help="the last is measured; default: %(default)s")
    options.add_cache(served, str(TOY_MODEL))
    steady_servers.add(served, needed=True)
    options.add_pace(served)
    for case in (core, *loads, cold, trace, served):
        case.add_argument("--json", type=Path)
    return parser


def _seconds(text: str) -> float:
    """An option's seconds, for argparse."""
    found = float(text)  # its ValueError is told of by argparse
    if not 0 <= found < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 to 3600 seconds")
    return found


def _speed(text: str) -> float:
    """An option's factor, for argparse."""
    found = float(text)
    if not 0 < found < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a factor above 0")
    return found


def write(path: Path, case: str, found: dict[str, Any]) -> None:
    """OSError: it cannot be written."""
    command = shlex.join(["python", "bench/steady.py", *map(short, sys.argv[1:])])
    said = header("steady") | {"command_line": command, "case": case, "results": found}
    write_whole(path, (json.dumps(said, indent=1) + "\n").encode())
    print(f"\nwritten: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    given = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    try:
        if given.json is not None:
            check_writable(given.json)
        found = CASES[given.case](given, console)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except (DriverError, OutOfPages, TooSmallError, MeasuringError, ServerError) as error:
        sys.exit(f"bench/steady.py: {error}")
    except (asyncio.CancelledError, KeyboardInterrupt):  # the servers are stopped
        sys.exit("bench/steady.py: interrupted")
    steady_cases.show_targets(console, found["targets"])
    if given.json is not None:
        write(given.json, given.case, found)


if __name__ == "__main__":
    main()
