# SPDX-License-Identifier: Apache-2.0
"""Launch lines: what to start, and that two servers differ in nothing but what is compared."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

CPU_FLAGS = (
    *("--device", "cpu"),
    "--disable-cuda-graph",
    *("--sampling-backend", "pytorch"),
    *("--grammar-backend", "none"),
    # SGLang would turn float32 weights into float16, whose rounding decides between tokens too often to compare.
    *("--dtype", "float32"),
)
# Two threads a core make PyTorch's CPU operators wait for each other.
CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}

# SGLang loads every installed plug-in into every server unless this names some; a comma names none.
NO_PLUGINS = {"SGLANG_PLUGINS": ","}
LAUNCHER = "sglang.launch_server"
VTENSOR = ("--radix-cache-backend", "vtensor")

_VARIABLE = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Launch:
    """A server to start. The address to listen at is added to the command: `--host HOST --port PORT`."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    """What is set beyond this process's own variables."""
    url: str | None = None
    """Address of a server that runs already; then there is nothing to start and no command."""


@dataclass(frozen=True)
class ServerOptions:
    """What both servers get."""

    model_path: str
    device: str
    """cpu or cuda."""
    context_length: int
    max_total_tokens: int | None
    """None: as many as SGLang finds memory for."""
    max_running_requests: int
    chunked_prefill_size: int | None
    """None: what SGLang chooses for the device."""
    extra: Sequence[str] = ()
    """Further arguments; they stand last, so they win."""


def named(name: str, options: ServerOptions, extra: Sequence[str]) -> Launch:
    """Any server: with the plug-in if its arguments ask for virtual tensors, else without."""
    command = _command(options, (), extra)
    return Launch(name, command, _environment(options) | _plugins(command))


def whole(name: str, options: ServerOptions, words: Sequence[str]) -> Launch:
    """A server by its whole command, variables before it as in a shell; it gets nothing more than an address."""
    rest = [*words]
    variables = {}
    while rest and (found := _VARIABLE.fullmatch(rest[0])):
        variables[found["name"]] = found["value"]
        rest.pop(0)
    return Launch(name, rest, _environment(options) | _plugins(rest) | variables)


def is_whole(words: Sequence[str]) -> bool:
    """Whether these are a command that launches SGLang, and not arguments for one."""
    return any(word == LAUNCHER for word in words)


def _plugins(command: Sequence[str]) -> dict[str, str]:
    given = {*pairwise(command)} | {tuple(it.split("=", 1)) for it in command}
    return {} if VTENSOR in given else NO_PLUGINS


def stock(options: ServerOptions, extra: Sequence[str] = ()) -> Launch:
    """SGLang as it is, without the plug-in."""
    backend = ("--attention-backend", "torch_native") if options.device == "cpu" else ()
    return Launch("stock", _command(options, backend, extra), _environment(options) | NO_PLUGINS)


def vtensor(options: ServerOptions, extra: Sequence[str] = ()) -> Launch:
    """SGLang with virtual tensors as its KV cache."""
    return Launch("vtensor", _command(options, VTENSOR, extra), _environment(options))


def _command(options: ServerOptions, backend: Sequence[str], extra: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", LAUNCHER, "--model-path", options.model_path]
    command += ["--skip-tokenizer-init"]
    command += ["--context-length", str(options.context_length)]
    if options.max_total_tokens is not None:
        command += ["--max-total-tokens", str(options.max_total_tokens)]
    command += ["--max-running-requests", str(options.max_running_requests)]
    if options.chunked_prefill_size is not None:
        command += ["--chunked-prefill-size", str(options.chunked_prefill_size)]
    if options.device == "cpu":
        command += CPU_FLAGS
    return [*command, *backend, *options.extra, *extra]


def _environment(options: ServerOptions) -> dict[str, str]:
    """The variables that a machine without a GPU needs, where the user has not set them."""
    wanted = CPU_ENVIRONMENT if options.device == "cpu" else {}
    return {name: value for name, value in wanted.items() if name not in os.environ}
