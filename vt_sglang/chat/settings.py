# SPDX-License-Identifier: Apache-2.0
"""What the user asked for."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vt_sglang.chat.generator import Shape
from vt_sglang.chat.thinking import Thinking


class Answers(StrEnum):
    """Where the answers come from with which a dialogue's history goes on."""

    GENERATED = "generated"
    FILE = "file"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Which(StrEnum):
    STOCK = "stock"
    VTENSOR = "vtensor"


class RateOf(StrEnum):
    """What an open loop's rate counts."""

    CONVERSATIONS = "conversations"
    REQUESTS = "requests"


@dataclass(frozen=True)
class Side:
    """One of the servers that are compared."""

    name: str
    words: tuple[str, ...] = ()
    """Arguments beyond those that all servers get, or a whole command."""
    url: str | None = None
    """Address of a server that runs already."""


@dataclass(frozen=True)
class Load:
    """How hard the servers are used, beside the number of clients."""

    rate: float | None = None
    """Open loop: Poisson arrivals, so many a second."""
    rate_of: RateOf = RateOf.CONVERSATIONS
    arrivals: Path | None = None
    """Open loop: a file of arrival times."""
    time_scale: float = 1.0
    """How many times faster than in that file time passes."""
    max_in_flight: int | None = None
    """Open loop: requests that may be at the server at a time."""
    think_time_s: float = 0.0
    """Mean time from the end of an answer to the next turn."""
    thinking: Thinking = Thinking.EXPONENTIAL
    seed: int = 0
    """Of arrivals and think times."""

    @property
    def is_open(self) -> bool:
        return self.rate is not None or self.arrivals is not None


@dataclass(frozen=True)
class Saturation:
    """A search for the highest load that keeps the limits."""

    percentile: float
    """Which percentile of TTFT and of inter-token times must keep its limit."""
    tolerance: float
    """How far the lowest load that fails may be above the highest that passes, relative to it."""
    max_probes: int
    probe_seconds: float
    """Open loop: for how long conversations arrive in a probe, at least."""
    probe_requests: int
    """Requests that a probe has, at least."""


@dataclass(frozen=True)
class Settings:
    model_path: str | None
    """None: the toy model."""
    dialogues: Path | Shape
    """A file, or what is to be generated."""
    limit: int | None
    output_tokens: int
    clients: int
    answers: Answers
    device: Device
    context_length: int
    max_total_tokens: int | None
    server_args: tuple[str, ...]
    stock_args: tuple[str, ...]
    vtensor_args: tuple[str, ...]
    only: Which | None
    report: Path
    timeout_s: float
    skip_bad: bool = False
    """Leave entries of the file out that are no dialogues."""
    load: Load = Load()
    sides: tuple[Side, ...] = ()
    """The servers to compare, the reference first; empty: stock and virtual tensors."""
    repeats: int = 1
    together: bool = False
    """Start all servers before anything is played, and let them run by turns."""
    warm_up: int = 0
    """Dialogues that each server plays before it is measured, and then forgets."""
    sample_s: float = 1.0
    """Seconds from a reading of the KV cache's memory to the next; 0: none."""
    ttft_limit_ms: float | None = None
    itl_limit_ms: float | None = None
    saturation: Saturation | None = None
