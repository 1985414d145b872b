# SPDX-License-Identifier: Apache-2.0
"""`vt-sglang watch URL`: looks, shows, and waits, until it is interrupted."""

import json
import sys
import time
from dataclasses import asdict

from rich.console import Console, RenderableType
from rich.live import Live

from vt_sglang.result_file import header
from vt_sglang.watch.reader import Reader
from vt_sglang.watch.sample import Sample
from vt_sglang.watch.screen import screen
from vt_sglang.watch.source import NoAnswerError, Source
from vt_sglang.watch.view import View, view

ROWS_BESIDE = 24
"""Lines of the terminal that all but the busiest prefixes take."""


def watch_once(source: Source, as_json: bool, console: Console) -> int:
    """One snapshot. Returns the exit status: 1 if the server does not answer."""
    try:
        now = Reader(source).read()
    except NoAnswerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    snapshot = view(now)
    if as_json:
        about = {"url": source.url, "model": now.model, "sglang": now.version}
        found = {"metrics": now.has_metrics, "vtensor": now.has_vtensor}
        text = json.dumps(header("watch") | about | found | asdict(snapshot))
        # The command line is among it.
        print(text.replace(source.api_key, "***") if source.api_key else text)
    else:
        console.print(screen(snapshot, title(source, now), None, console.width, 10))
    return 0


def watch_live(source: Source, interval_s: float, console: Console, looks: int | None = None) -> int:
    """Show the server until Ctrl-C. Returns the exit status, 0.

    Args:
        interval_s: seconds from one look to the next.
        looks: end after so many. None: never.
    """
    state = _State(source)
    try:
        if not console.is_terminal:  # one screen after the other, for a file
            while state.look() != looks:
                console.print(state.screen(console))
                time.sleep(interval_s)
            console.print(state.screen(console))
            return 0
        with Live(console=console, auto_refresh=False, screen=True, transient=True) as live:
            while True:
                done = state.look() == looks
                live.update(state.screen(console), refresh=True)
                if done:
                    return 0
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return 0
    finally:
        state.last_words(console)


class _State:
    """What is known of a server, through its absences."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reader = Reader(source)
        self._sample: Sample | None = None
        self._view = View()
        self._lost_s: float | None = None
        self._reason = ""
        self._looks = 0

    def look(self) -> int:
        """Take a sample if the server answers. Returns how many looks there were."""
        self._looks += 1
        try:
            now = self._reader.read()
        except NoAnswerError as error:
            self._reader.forget()
            self._lost_s = time.monotonic() if self._lost_s is None else self._lost_s
            self._reason = str(error)
        else:
            # An interval with an absence in it is none: its rates would be of no moment.
            before = None if self._lost_s is not None else self._sample
            self._view = view(now, before)
            self._sample, self._lost_s = now, None
        return self._looks

    def screen(self, console: Console) -> RenderableType:
        status = None
        if self._lost_s is not None:
            seconds = time.monotonic() - self._lost_s
            shown = "; below is what it said last" if self._sample is not None else ""
            status = f"{self._reason} ({seconds:.0f} s; trying again{shown})"
        rows = max(console.height - ROWS_BESIDE, 3) if console.is_terminal else 10
        return screen(self._view, title(self._source, self._sample), status, console.width, rows)

    def last_words(self, console: Console) -> None:
        """What stays in the terminal: the last screen, which the alternate one took with it."""
        if console.is_terminal and self._sample is not None:
            console.print(self.screen(console))


def title(source: Source, now: Sample | None) -> str:
    """Which server this is."""
    about = [source.url]
    if now is not None and now.model:
        about.append(now.model.rstrip("/").rsplit("/", 1)[-1])
    if now is not None and now.version:
        about.append(f"SGLang {now.version}")
    return "  ".join(about)
