# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang memory URL`: what a server's KV cache takes and may take, and another limit for it."""

import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vt_sglang.config import MEMORY_LIMIT, parse_bytes
from vt_sglang.watch.screen import show_bytes
from vt_sglang.watch.source import NoAnswerError, Source

_LOOKS_EVERY_S = 0.2


class LimitError(ValueError):
    """A limit that cannot be set."""


@dataclass(frozen=True)
class Memory:
    """Of one replica's KV cache, in bytes; the page for padding aside, but in `physical_bytes`."""

    budget_bytes: int
    """That it was started with."""
    limit_bytes: int
    physical_bytes: int
    """Taken from the device."""
    pinned_bytes: int
    """Held by running requests."""
    cached_bytes: int
    """Held by nobody else but the tree of prefixes."""
    page_bytes: int

    @property
    def above_bytes(self) -> int:
        """Taken and above the limit: on its way back, or held by requests that run."""
        return max(0, self.physical_bytes - self.page_bytes - self.limit_bytes)


def read(source: Source) -> list[Memory]:
    """A row a replica. NoAnswerError, also for a server without virtual tensors."""
    info = source.info() or {}
    states = info.get("internal_states")
    found = [it["vtensor"] for it in states or [] if isinstance(it, dict) and isinstance(it.get("vtensor"), dict)]
    try:
        rows = [_memory(it) for it in found]
    except (KeyError, TypeError):
        raise NoAnswerError(f"{source.url} runs another version of vt-sglang, which tells of no limit") from None
    if not rows:
        raise NoAnswerError(f"{source.url} has no virtual tensors; start it with --radix-cache-backend vtensor")
    return rows


def _memory(vtensor: dict[str, Any]) -> Memory:
    usage, pages, page_bytes = vtensor["usage"], vtensor["pages"], vtensor["page_bytes"]
    return Memory(
        budget_bytes=usage["budget_pages"] * page_bytes,
        limit_bytes=usage["limit_pages"] * page_bytes,
        physical_bytes=vtensor["physical_bytes"],
        pinned_bytes=pages["pinned"] * page_bytes,
        cached_bytes=pages["evictable"] * page_bytes,
        page_bytes=page_bytes,
    )


def parse_limit(text: str, budget_bytes: int, page_bytes: int) -> int:
    """Bytes of `12GiB`, of `40%` of the budget, or of `none`, which is all of it. LimitError."""
    if text.strip().lower() in ("none", "100%"):
        return budget_bytes
    if found := re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*%\s*", text):
        limit = int(budget_bytes * float(found[1]) / 100)
    else:
        try:
            limit = parse_bytes(text)
        except ValueError:
            raise LimitError(
                f"{text!r} is no limit; write whole bytes, for example 12GiB or 12800MiB, or 40%, or none"
            ) from None
    if not page_bytes <= limit <= budget_bytes:
        least, most = show_bytes(page_bytes), show_bytes(budget_bytes)
        raise LimitError(f"a limit of {text} cannot be: it has to be {least} (a page) to {most}, or none")
    return limit


def set_limit(source: Source, limit_bytes: int, wait_s: float) -> list[Memory]:
    """Set it for every replica, and wait, not longer than so, until the memory is given back.

    Returns a row a replica. NoAnswerError if the server refuses.
    """
    answer = source.post("/set_internal_state", {"server_args": {MEMORY_LIMIT: limit_bytes}})
    if not isinstance(answer, list) or not answer or not all(it is True for it in answer):
        raise NoAnswerError(f"{source.url} does not take the limit; its log says why")
    end = time.monotonic() + wait_s
    while True:
        rows = read(source)
        if not any(it.above_bytes for it in rows) or time.monotonic() >= end:
            return rows
        time.sleep(_LOOKS_EVERY_S)


def show(rows: list[Memory], console: Console) -> None:
    """For a terminal."""
    table = Table("replica", "may take", "of", "takes", "running requests", "cached")
    for number, it in enumerate(rows):
        sizes = (it.limit_bytes, it.budget_bytes, it.physical_bytes, it.pinned_bytes, it.cached_bytes)
        table.add_row(str(number), *map(show_bytes, sizes))
    console.print(table)
    if any(it.above_bytes for it in rows):
        console.print("What is above the limit goes back step by step, and what requests hold when they end.")


def as_json(rows: list[Memory]) -> str:
    """For programs."""
    return json.dumps([asdict(it) for it in rows])
