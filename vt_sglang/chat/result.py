# SPDX-License-Identifier: Apache-2.0
"""What one server did, and what its end showed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vt_sglang.chat.endpoint import Endpoint
from vt_sglang.chat.launch import Launch
from vt_sglang.chat.play import Played
from vt_sglang.chat.saturate import Search

LEAK_SIGNS = ("leak detected", "memory leak")


@dataclass
class Result:
    """One run of one server."""

    launch: Launch
    start_s: float
    """Seconds until the server was ready."""
    played: Played
    leaks: list[str] = field(default_factory=list)
    """Signs that the server lost count of its memory, its death among them; empty if there are none."""
    total_tokens: int | None = None
    """Tokens that the server's KV cache has room for, as it says."""
    vtensor: dict[str, Any] | None = None
    """What virtual tensors say of themselves: counters, usage, bytes. None for a stock server."""
    repeat: int = 0
    order: int = 0
    """Place of the run among all runs of all servers."""
    flushed: bool | None = None
    """Whether the cache was flushed before the run; None: the server had just started."""
    memory: list[dict[str, Any]] = field(default_factory=list)
    """`time_s` since the run began and `kv_bytes`."""
    search: Search | None = None
    """The search for the highest load, of which `played` is the best probe; None if none was asked for."""


async def examine(server: Endpoint, played: Played) -> Result:
    """Ask an idle server how it is. SGLang proves its pools whenever it is idle, and ends itself if they are wrong."""
    result = Result(server.launch, server.start_s, played)
    healthy = await server.healthy()
    info = await server.info()
    if not healthy or info is None:
        status = await server.end()
        what = "runs but does not answer any more" if status is None else f"ended by itself, with status {status}"
        result.leaks.append(f"the server {what}")
    if info is not None:
        result.total_tokens = info.get("max_total_num_tokens")
        result.vtensor = info["internal_states"][0].get("vtensor")
    if result.vtensor and (count := result.vtensor["leaks"]):
        result.leaks.append(f"virtual tensors report {count} leaks")
    return result


def leaks_in(log: Path) -> list[str]:
    """Lines of a server's log that tell of a leak."""
    with log.open(errors="replace") as lines:
        return [line.strip() for line in lines if any(sign in line.lower() for sign in LEAK_SIGNS)]
