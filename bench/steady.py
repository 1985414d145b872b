# SPDX-License-Identifier: Apache-2.0
"""The memory driver in the steady state: how often it is called, and what that costs.

    python bench/steady.py core [--load again|returning] [--driver none|host|cuda] [--json FILE]

`core` plays a load on the core alone, as a server's scheduler would: without a model, and with the driver "none"
without memory too. It shows which call of the core made which of the driver's, and why.

Loads: `again` is 64 clients with a conversation of 10 turns each under one system prompt, and then again with other
conversations, while memory is full of the old ones. `returning` is 500 conversations, 64 of them at work at a time,
whose next turns come in a random order, with memory for half of them. All conversations of a pass are new.

Exit status: 1 if it could not be played, 2 if the options make no sense.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import steady_core
import steady_options as options
from common import short
from rich.console import Console
from steady_engine import TooSmallError

from vt_sglang._core import DriverError, OutOfPages
from vt_sglang.chat.files import check_writable, write_whole
from vt_sglang.result_file import header

PIPED_WIDTH = 150


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = parser.add_subparsers(dest="case", required=True)
    core = cases.add_parser("core", help="a load on the core alone")
    options.add_load(core)
    options.add_cache(core)
    options.add_pace(core)
    core.add_argument("--check", action="store_true", help="prove the core's invariants after each pass")
    for case in (core,):
        case.add_argument("--json", type=Path)
    return parser


def _core(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    steady = options.steady(given)
    shape, pace = options.shape(given, steady), options.pace(given)
    found = steady_core.result(shape, steady, pace, steady_core.replay(shape, steady, pace, check=given.check))
    steady_core.show(console, found)
    return found


CASES = {"core": _core}


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
    except (DriverError, OutOfPages, TooSmallError) as error:
        sys.exit(f"bench/steady.py: {error}")
    if given.json is not None:
        write(given.json, given.case, found)


if __name__ == "__main__":
    main()
