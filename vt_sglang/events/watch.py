# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang watch --events`: a server's cache, rebuilt from its events, live in the terminal."""

import re
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from vt_sglang.events.families import Shape, shape_of
from vt_sglang.events.messages import Batch
from vt_sglang.events.subscriber import Subscriber
from vt_sglang.events.view import View

REFRESH_S = 1.0

_ANY_HOST = re.compile(r"^tcp://(\*|0\.0\.0\.0|\[::\]):")


def watch_events(
    endpoint: str,
    replay: str | None,
    console: Console,
    *,
    refresh_s: float = REFRESH_S,
    is_over: Callable[[View], bool] = lambda _view: False,
) -> int:
    """Show what the events of one publisher tell until Ctrl-C: a live table in a terminal, else a line a second.

    Args:
        endpoint: of the publisher. An address that stands for every interface, as a server's own option may have it,
            is taken for this machine.
        replay: its replay endpoint, or None.
        is_over: asked after each refresh whether that was enough.

    Returns:
        The exit status: 0, or 2 for what is no endpoint.
    """
    try:
        subscriber = Subscriber(connectable(endpoint), None if replay is None else connectable(replay))
    except ValueError as error:
        console.print(f"Error: {error}", markup=False, soft_wrap=True)
        return 2
    watched = Watched(subscriber, endpoint)
    with subscriber:
        try:
            if console.is_terminal:
                with Live(watched.panel(), console=console, auto_refresh=False) as live:
                    while not is_over(watched.view):
                        watched.collect(refresh_s)
                        live.update(watched.panel(), refresh=True)
            else:
                while not is_over(watched.view):
                    watched.collect(refresh_s)
                    console.print(watched.line(), markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            pass
    return 0


def connectable(endpoint: str) -> str:
    """An endpoint as one connects to it. ValueError, with an example, if it is none."""
    if not re.fullmatch(r"tcp://[^/\s]+:\d{1,5}|ipc://\S+", endpoint):
        raise ValueError(f"{endpoint!r} is no endpoint of events; write for example tcp://127.0.0.1:5557")
    if endpoint.startswith("tcp:") and int(endpoint.rpartition(":")[2]) > 65535:
        raise ValueError(f"{endpoint!r}: ports go up to 65535")
    return _ANY_HOST.sub("tcp://127.0.0.1:", endpoint)


class Watched:
    """A view, the stream that it is made of, and what happened in the last interval."""

    def __init__(self, subscriber: Subscriber, endpoint: str) -> None:
        self.view = View()
        self._subscriber, self._endpoint = subscriber, endpoint
        self._shape: Shape = shape_of(self.view)
        self._shape_at, self._shape_s = 0.0, 0.0
        self._rates = (0.0, 0.0, 0.0)
        self._events = 0
        self._last_batch_s: float | None = None

    def collect(self, seconds: float) -> None:
        """Take in what comes for so long."""
        start = time.monotonic()
        changes = self.view.changes
        before = (self._events, changes.stored, changes.removed)
        while (left := seconds - (time.monotonic() - start)) > 0:
            for update in self._subscriber.poll(left):
                self.view.update(update)
                if isinstance(update, Batch):
                    self._events += len(update.events)
                    self._last_batch_s = update.time_s
        elapsed = time.monotonic() - start
        after = (self._events, changes.stored, changes.removed)
        self._rates = tuple((now - then) / elapsed for now, then in zip(after, before, strict=True))  # type: ignore[assignment]
        # A large view takes longer to look through: that is not to take more than a tenth of the time.
        if time.monotonic() - self._shape_at >= 10 * self._shape_s:
            self._shape_at = time.monotonic()
            self._shape = shape_of(self.view)
            self._shape_s = time.monotonic() - self._shape_at

    def line(self) -> str:
        """The state in a line."""
        view, stream, shape = self.view, self._subscriber.statistics, self._shape
        events, stored, removed = self._rates
        return (
            f"{self._state()} | events/s {events:,.0f} (+{stored:,.0f} -{removed:,.0f} blocks) | "
            f"blocks {len(view.blocks):,} tokens {view.tokens:,} roots {shape.roots:,} "
            f"deepest {shape.deepest_tokens:,} | cleared {view.changes.cleared:,} gaps {stream.gaps:,} "
            f"replays {stream.replays:,} missed {stream.missed:,} restarts {stream.restarts:,}"
        )

    def panel(self) -> RenderableType:
        """The state in tables."""
        view, stream, shape = self.view, self._subscriber.statistics, self._shape
        events, stored, removed = self._rates
        now = Table.grid(padding=(0, 3))
        now.add_row("events/s", f"{events:,.0f}", "blocks/s", f"+{stored:,.0f} -{removed:,.0f}")
        now.add_row("blocks", f"{len(view.blocks):,}", "tokens", f"{view.tokens:,}")
        now.add_row("prefix families", f"{shape.roots:,}", "paths", f"{shape.leaves:,}")
        deepest = f"{shape.deepest_tokens:,} tokens, {shape.deepest_blocks:,} blocks"
        now.add_row("deepest path", deepest, "unknown parents", f"{view.orphans():,}")
        totals = f"{view.changes.stored:,} stored, {view.changes.removed:,} removed, {view.changes.cleared:,} clears"
        now.add_row("since the start", totals, "batches", f"{stream.batches:,}")
        filled = f"{stream.gaps:,} gaps, {stream.missed:,} batches missed"
        now.add_row("stream", filled, "replays", f"{stream.replays:,} ({stream.replayed:,} batches)")
        now.add_row("connections", f"{stream.connections:,}", "restarts", f"{stream.restarts:,}")
        largest = Table("tokens", "blocks below", "share", "paths", "first ids", box=None, header_style="bold")
        for stretch in shape.stretches:
            share = stretch.blocks / max(1, len(view.blocks))
            ids = " ".join(str(token) for token in stretch.first_ids[:10])
            largest.add_row(
                f"{stretch.start:,}-{stretch.end:,}",
                f"{stretch.blocks:,}",
                f"{share:.1%}",
                f"{stretch.leaves:,}",
                ids,
            )
        return Group(f"KV events of {self._endpoint}: {self._state()}", now, "", "Largest prefixes", largest)

    def _state(self) -> str:
        if not self._subscriber.connected:
            return "not connected" if self._last_batch_s is None else "connection lost"
        if self._last_batch_s is None:
            return "connected, no events yet"
        if self._subscriber.is_checking:
            return "waiting for the replay endpoint"
        return "partial until the next clear" if self.view.partial else "complete"
