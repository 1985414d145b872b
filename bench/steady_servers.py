# SPDX-License-Identifier: Apache-2.0
"""Options of bench/steady.py for the servers that a case starts."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import positive
from serve_run import INSTALLED_ALONE

from vt_sglang import machine
from vt_sglang.chat import launch, toy_model
from vt_sglang.chat.launch import Launch, ServerOptions
from vt_sglang.chat.run import CPU_TOTAL_TOKENS, LEAST_RUNNING_REQUESTS, TOY_MODEL
from vt_sglang.chat.script import RESERVED_TOKENS
from vt_sglang.chat.sides import split_side, split_words

VTENSOR = "vtensor=--radix-cache-backend vtensor"
STOCK = {"cuda": "stock-fa3=--attention-backend fa3", "cpu": "stock-torch=--attention-backend torch_native"}


def add(parser: argparse.ArgumentParser, *, needed: bool = False) -> None:
    """Which servers, and what they get. needed: the case is none without them."""
    group = parser.add_argument_group("servers")
    if not needed:
        group.add_argument("--no-server", action="store_true", help="the core alone")
    group.add_argument("--no-core", action="store_true", help="servers alone")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    group.add_argument("--side", action="append", metavar="NAME=ARGUMENTS", help="SGLang's launch arguments")
    group.add_argument("--server-args", default="", metavar="ARGUMENTS", help="for all; a single one after `=`")
    group.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for a start, or one answer")
    group.add_argument("--logs", type=Path, default=Path("report"), metavar="FOLDER")
    group.add_argument("--reserve", type=positive, default=RESERVED_TOKENS, metavar="TOKENS", help=argparse.SUPPRESS)


def ensure_model(given: argparse.Namespace) -> None:
    """Make the toy model, if that is what is used. OSError: it cannot be made."""
    if Path(given.model) == TOY_MODEL:
        toy_model.ensure(TOY_MODEL)


def launches(
    given: argparse.Namespace, *, longest_tokens: int, total_tokens: int | None, requests: int, stock: bool
) -> Sequence[Launch]:
    """What to start; the folder for logs is made.

    Args:
        longest_tokens: of a sequence.
        total_tokens: that the KV cache holds; None: as many as SGLang finds memory for, fewer on a CPU.
        requests: at one time.
        stock: whether stock SGLang is a side where none is given.

    Raises:
        ValueError, OSError: it cannot be done.
    """
    if machine.installed("sglang") is None:
        raise ValueError("SGLang is not installed; vt-sglang doctor says how to get it")
    gpus = machine.gpus()
    if given.device == "cuda" and not gpus.names:
        raise ValueError(f"--device cuda: {gpus.reason}")
    device = "cpu" if given.device == "cpu" or not gpus.names else "cuda"
    texts = given.side or ([STOCK[device], VTENSOR] if stock else [VTENSOR])
    sides = dict(split_side("--side", text) for text in texts)
    if len(sides) < len(texts):
        raise ValueError("--side: the same name twice")
    if total_tokens is None and device == "cpu":
        total_tokens = CPU_TOTAL_TOKENS
    options = ServerOptions(
        model_path=str(given.model),
        device=device,
        context_length=longest_tokens + given.reserve,
        max_total_tokens=total_tokens,
        max_running_requests=max(requests, LEAST_RUNNING_REQUESTS),
        chunked_prefill_size=None,
        extra=("--sleep-on-idle", *split_words("--server-args", given.server_args)),
    )
    given.logs.mkdir(parents=True, exist_ok=True)
    made = [launch.named(name, options, arguments) for name, arguments in sides.items()]
    return [replace(it, environment=it.environment | INSTALLED_ALONE) for it in made]
