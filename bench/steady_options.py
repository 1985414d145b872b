# SPDX-License-Identifier: Apache-2.0
"""Options of bench/steady.py that several cases have, and what they make."""

import argparse
from typing import Any

from common import natural, positive
from serve_load import Load
from steady_core import Shape
from steady_engine import Pace
from steady_load import Steady

from vt_sglang import machine
from vt_sglang.config import parse_bytes
from vt_sglang.layout import DEVICE_PAGE_BYTES, Geometry, host_page_bytes
from vt_sglang.replay import sizes

LOADS: dict[str, dict[str, Any]] = {
    # Prompts of 2,520 to 7,920 tokens.
    "again": {
        "clients": 64,
        "conversations": 64,
        "turns": 10,
        "system": 2048,
        "first": 472,
        "next": 472,
        "output": 128,
        "order": "own",
        "passes": 4,
        "warm": 2,
        "budget_share": 1.0,
    },
    # A working set of 288,000 tokens; half of it, 17.6 GiB for Llama-3-8B, fits a card of 80 GB twice.
    "returning": {
        "clients": 64,
        "conversations": 500,
        "turns": 3,
        "system": 0,
        "first": 256,
        "next": 64,
        "output": 64,
        "order": "random",
        "passes": 4,
        "warm": 1,
        "budget_share": 0.5,
    },
}
"""By name; `budget_share` is the memory by default, of what a pass's conversations take."""


def add_load(parser: argparse.ArgumentParser, name: str | None = None) -> None:
    """name: the load whose figures are the defaults; None: the user chooses."""
    group = parser.add_argument_group("load")
    if name is None:
        group.add_argument("--load", choices=LOADS, default="again", help="whose figures are the defaults")
    else:
        parser.set_defaults(load=name)
    group.add_argument("--clients", type=positive)
    group.add_argument("--conversations", type=positive, help="of a pass")
    group.add_argument("--turns", type=positive)
    group.add_argument("--system", type=natural, metavar="TOKENS", help="system prompt of all conversations")
    group.add_argument("--turn-first", type=positive, metavar="TOKENS", help="said first; default: --turn-in, if given")
    group.add_argument("--turn-in", type=positive, metavar="TOKENS", help="said in each later turn")
    group.add_argument("--turn-out", type=positive, metavar="TOKENS", help="of each answer")
    group.add_argument("--order", choices=["own", "random"], help="a client's own conversation, or any that waits")
    group.add_argument("--passes", type=positive, help="in all")
    group.add_argument("--warm", type=natural, metavar="PASSES", help="those of them that are not measured")
    group.add_argument("--seed", type=int, default=0)


def add_cache(parser: argparse.ArgumentParser, model: str, *, sized: bool = True) -> None:
    """How a core is made without a server.

    Args:
        model: the default.
        sized: whether its size is for the user to say.
    """
    group = parser.add_argument_group("cache")
    group.add_argument("--model", default=model, help="a folder; without servers a name will do; default: %(default)s")
    group.add_argument("--driver", choices=["none", "host", "cuda"], help="default: cuda on a GPU, else none")
    group.add_argument("--kv-dtype", choices=sizes.DTYPE_BYTES, default="bfloat16")
    group.add_argument("--token-bytes", type=positive, help="KV bytes of a token, in place of the model's")
    group.add_argument("--page-bytes", default="auto", metavar="SIZE", help="default: as a server chooses")
    if sized:
        group.add_argument("--budget", metavar="CAPACITY", help="bytes (20GiB) or tokens (0.2M); servers too")
        group.add_argument("--slots", type=positive, help="for requests; servers too; default: two a client")
        group.add_argument("--context", type=positive, metavar="TOKENS", help="default: the longest sequence")
    group.add_argument("--map-pages", action="store_true", help="map pages where a GPU's server would move contents")
    if sized:
        group.add_argument("--map-ahead", action="store_true", help="by a thread, as a server does")
    group.add_argument("--guard", type=natural, default=192, metavar="TOKENS", help="read behind prompts; FA3's 192")


def add_pace(parser: argparse.ArgumentParser) -> None:
    """How a scheduler goes without a server."""
    group = parser.add_argument_group("pace")
    group.add_argument("--chunk", type=positive, default=8192, metavar="TOKENS", help="prompt tokens of a step")
    group.add_argument("--forward-us", type=natural, default=0, metavar="US", help="what a step's forward takes")
    group.add_argument(
        "--think", type=natural, default=10, metavar="STEPS", help="at most, from an answer to the next turn; drawn"
    )


def steady(given: argparse.Namespace) -> Steady:
    """ValueError: it makes no sense."""
    default = LOADS[given.load]
    first = given.turn_first or given.turn_in or default["first"]
    clients = given.clients or default["clients"]
    own = given.clients if given.load == "again" else None  # a conversation each
    conversations = given.conversations or own or default["conversations"]
    if conversations < clients:
        raise ValueError(f"--conversations: {conversations} are too few for {clients} clients")
    system = default["system"] if given.system is None else given.system
    load = Load(
        clients,
        given.turns or default["turns"],
        system,
        first,
        given.turn_in or default["next"],
        given.turn_out or default["output"],
    )
    order = given.order or default["order"]
    warm = default["warm"] if given.warm is None else given.warm
    passes = given.passes or max(default["passes"], warm + 1)
    if warm >= passes:
        raise ValueError(f"--warm: of {passes} passes none would be measured")
    return Steady(load, conversations, order == "random", passes, warm, given.seed)


def shape(given: argparse.Namespace, load: Steady) -> Shape:
    """ValueError (SizeError): it makes no sense."""
    token_bytes = given.token_bytes or sizes.model(given.model, given.kv_dtype).token_bytes
    driver, page_bytes = memory(given, token_bytes)
    longest = load.longest_tokens
    if given.context is not None and given.context < longest:
        raise ValueError(f"--context: a conversation comes to {longest:,} tokens")
    budget = budget_bytes(given, load, token_bytes)
    pages = budget // page_bytes
    if pages < Geometry(page_bytes, token_bytes).pages_for(longest):
        raise ValueError(f"--budget: {budget:,} bytes do not hold a conversation of {longest:,} tokens")
    return Shape(
        driver,
        page_bytes,
        token_bytes,
        slots(given, load),
        given.context or longest,
        pages,
        moves(given, driver),
        given.map_ahead,
    )


def moves(given: argparse.Namespace, driver: str) -> bool:
    """Whether contents are moved: as a server does, and with the driver "none" as on a GPU."""
    return driver != "host" and not given.map_pages


def budget_bytes(given: argparse.Namespace, load: Steady, token_bytes: int) -> int:
    """ValueError (SizeError): it makes no sense."""
    if given.budget is None:
        return int(load.working_set_tokens * LOADS[given.load]["budget_share"]) * token_bytes
    return sizes.parse_capacity(given.budget, token_bytes)


def slots(given: argparse.Namespace, load: Steady) -> int:
    """ValueError: too few."""
    found: int = given.slots or 2 * load.load.clients
    if found < load.load.clients:
        raise ValueError(f"--slots: {found} are too few for {load.load.clients} clients")
    return found


def memory(given: argparse.Namespace, token_bytes: int) -> tuple[str, int]:
    """(driver, bytes of a page). ValueError: no size."""
    driver: str = given.driver or ("cuda" if machine.gpus().names else "none")
    if given.page_bytes != "auto":
        return driver, parse_bytes(given.page_bytes)
    return driver, DEVICE_PAGE_BYTES if driver == "cuda" else host_page_bytes(token_bytes)


def pace(given: argparse.Namespace) -> Pace:
    """Of a replay on the core."""
    return Pace(given.chunk, given.guard, given.forward_us / 1e6, given.think)
