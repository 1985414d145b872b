# SPDX-License-Identifier: Apache-2.0
"""Launch flags, and what `--radix-cache-backend vtensor` means for SGLang's own arguments."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang.srt.utils.common import is_cpu

from vt_sglang.adapter import refusals
from vt_sglang.adapter.event_publisher import resolve_events
from vt_sglang.adapter.kv_dtype import refuse_kv_of_model, refuse_kv_option
from vt_sglang.adapter.plugin import BACKEND
from vt_sglang.config import (
    Kernel,
    VTensorConfig,
    parse_auto_or_off,
    parse_block_tokens,
    parse_kernel,
    parse_page_bytes,
    parse_seconds,
)


def wanted(server_args: Any) -> bool:
    """Whether a server is asked to run on virtual tensors."""
    return bool(server_args.radix_cache_backend == BACKEND)


def add_flags(_result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER `ServerArgs.add_cli_args`: the project's own flags."""
    group = parser.add_argument_group("vtensor", f"Options of vt-sglang. They need --radix-cache-backend {BACKEND}.")
    group.add_argument(
        "--vtensor-page-bytes",
        type=_checked(parse_page_bytes),
        metavar="SIZE",
        help="Size of a physical page, for example 2MiB: the grain of sharing and of waste. Default: auto, which is "
        "the driver's granularity (2 MiB), or less on the host for a very small model.",
    )
    for phase in ("prefill", "decode"):
        group.add_argument(
            f"--vtensor-{phase}-kernel",
            type=_checked(parse_kernel),
            metavar="{" + ",".join(Kernel) + "}",
            help=f"What attends in {phase} on a GPU: the project's Triton kernel, FlashAttention-3 over the same "
            "virtual tensors, or (auto) what was measured to be faster and can be had.",
        )
    group.add_argument(
        "--vtensor-shared-decode",
        choices=("auto", "off"),
        help="Whether decode on a GPU reads a prefix that requests share once for all of them, where that pays (auto), "
        "or once for each (off), as FlashAttention-3 does in any case. Default: auto.",
    )
    group.add_argument(
        "--vtensor-map-ahead",
        choices=("auto", "off"),
        help="Whether a thread maps and creates pages of GPU memory before they are needed (auto), or the scheduler "
        "when they are (off). Default: auto.",
    )
    group.add_argument(
        "--vtensor-exportable-pages",
        action="store_true",
        default=None,
        help="Let other processes be given the handles of GPU pages, as NCCL needs to register them.",
    )
    group.add_argument(
        "--vtensor-event-block-tokens",
        type=_checked(parse_block_tokens),
        metavar="N",
        help="Tokens of the blocks that KV events (--kv-events-config) tell of. Default: 64.",
    )
    group.add_argument(
        "--vtensor-idle-trim",
        type=_checked(parse_seconds),
        metavar="SECONDS",
        help="Forget what is cached, and give its memory back to the driver, once the server was idle for so "
        "long. Default: 0, never.",
    )
    group.add_argument(
        "--vtensor-check",
        action="store_true",
        default=None,
        help="Prove every invariant of the cache after every step. Slow; for finding bugs.",
    )


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the message of an ArgumentTypeError, and not that of a ValueError."""

    def checked(text: str) -> Any:
        try:
            return (parse(text),)  # in a tuple, since None is a value that can be given
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def read_flags(original: Callable[..., Any], cls: type, arguments: argparse.Namespace) -> Any:
    """AROUND `ServerArgs.from_cli_args`: flags overrule the environment, which carries them to child processes."""
    given: dict[str, Any] = {}
    for name in ("page_bytes", "prefill_kernel", "decode_kernel", "event_block_tokens", "idle_trim"):
        if (value := getattr(arguments, f"vtensor_{name}", None)) is not None:
            given[name] = value[0]
    for name in ("shared_decode", "map_ahead"):
        if (value := getattr(arguments, f"vtensor_{name}", None)) is not None:
            given[name] = parse_auto_or_off(value)
    for name in ("exportable_pages", "check"):
        if getattr(arguments, f"vtensor_{name}", None):
            given[name] = True
    if given and arguments.radix_cache_backend != BACKEND:
        flags = ", ".join(f"--vtensor-{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags}: this needs --radix-cache-backend {BACKEND}")
    if "event_block_tokens" in given and not arguments.kv_events_config:
        raise ValueError(
            "--vtensor-event-block-tokens: without --kv-events-config there are no events; add for example "
            """--kv-events-config '{"publisher": "zmq"}'"""
        )
    if given:
        replace(VTensorConfig.from_environment(), **given).to_environment()
    return original(cls, arguments)


def resolve(original: Callable[..., None], server_args: Any) -> None:
    """AROUND `ServerArgs.__post_init__`: fill in what one flag implies, and refuse early what does not work."""
    if not wanted(server_args):
        original(server_args)
        return
    from vt_sglang.adapter import hooks

    hooks.verify()
    config = VTensorConfig.from_environment()  # a bad value is better refused now than in a child process
    if is_cpu():
        refusals.refuse_kernels(config)
    refusals.refuse_options(server_args)
    resolve_events(server_args)
    if server_args.attention_backend is None:
        server_args.attention_backend = BACKEND
    if is_cpu():
        server_args.disable_cuda_graph = True
    has_model = server_args.model_path.lower() not in ("none", "dummy")
    try:
        original(server_args)
    except (AssertionError, ValueError):
        # What SGLang objects to may come of a model that virtual tensors cannot serve: that is the better answer.
        if has_model and os.path.isdir(server_args.model_path):
            refusals.refuse_model(server_args.get_model_config())
        raise
    if has_model:
        refusals.limit_prefill_graph(server_args)
        refuse_kv_option(server_args)
        refusals.refuse_model(server_args.get_model_config(), server_args.attention_backend)
        if not is_cpu():
            refuse_kv_of_model(server_args)
