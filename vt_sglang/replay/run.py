# SPDX-License-Identifier: Apache-2.0
"""A replay from its settings to its result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vt_sglang.chat.files import check_writable
from vt_sglang.config import parse_bytes
from vt_sglang.layout import Geometry
from vt_sglang.replay import caches, curve, distances, radix, result, sizes, table, texts, trace, work
from vt_sglang.replay.request import Trace
from vt_sglang.replay.settings import Settings, UsageError


def run(settings: Settings, console: Console) -> None:
    """Read the trace, replay it, print the result and write it.

    Raises:
        TraceError, SizeError, UsageError, EncodingError: what was asked for cannot be done, with the reason.
    """
    if settings.json is not None:
        if settings.json.resolve() == settings.trace.resolve():
            raise UsageError(f"--json {settings.json} is the trace itself; name another file")
        try:
            check_writable(settings.json)
        except OSError as error:
            raise UsageError(f"--json {settings.json}: {error.strerror}") from None
    model = _model(settings)
    page_bytes = _page_bytes(settings.page_bytes)
    asked = [_capacity(text, model.token_bytes, page_bytes) for text in settings.capacities]
    with _progress(console) as progress:
        task = progress.add_task("reading", total=None)
        read = trace.read(
            settings.trace,
            texts.make(settings.tokenizer),
            settings.form,
            skip_bad=settings.skip_bad,
            outputs=settings.outputs,
        )
        progress.update(task, total=1, completed=1)
        try:
            made = _replay(settings, read, model, page_bytes, asked, progress)
        except MemoryError:
            raise UsageError("there is not enough memory for so many pages: give a larger --page-bytes") from None
    table.show(made, console)
    if settings.json is not None:
        try:
            result.write(settings.json, made)
        except OSError as error:
            raise UsageError(f"--json {settings.json}: {error.strerror}") from None


def _replay(
    settings: Settings, read: Trace, model: sizes.Model, page_bytes: int, asked: list[int], progress: Progress
) -> dict[str, Any]:
    grain = settings.grain
    works = work.prepare(read.requests, grain)
    # A block cache evicts block by block, so every block is recorded by itself.
    whole = max(len(it.units) for it in works)
    chunk = 1 if grain > 1 else settings.chunk or whole
    shape = caches.Shape(page_bytes, model.token_bytes * grain, settings.slots, chunk)

    found = _measure(works, progress)
    everything = caches.largest_pages(works, shape)
    infinite_core = _make(works, shape, everything)
    infinite = _play(infinite_core, works, shape, progress, "infinite")

    capacities = asked or _chosen(found, works, shape, infinite_core)
    radix_chunk = max((settings.chunk or whole * grain) // grain, 1)
    without_radix = radix.why_not() if settings.radix else "--no-radix"
    runs = []
    for number, capacity in enumerate(capacities, start=1):
        pages = min(capacity // page_bytes, everything)
        label = f"{number} of {len(capacities)}"
        ours = stock = None
        for _ in range(settings.repeats):
            core = _make(works, shape, pages)
            ours = _fastest(ours, _play(core, works, shape, progress, f"capacity {label}"))
            if without_radix is None:
                units = min(capacity // shape.unit_bytes, sum(len(it.units) for it in works) + 1)
                with _task(progress, f"RadixCache {label}", len(works)) as step:
                    stock = _fastest(stock, radix.play(units, works, radix_chunk, step))
        assert ours is not None
        ours.details = caches.details(core, grain, read.prompt_tokens - _cached(works, ours, grain))
        runs.append(result.Run(capacity, ours, stock))
    return result.make(
        settings=settings,
        trace=read,
        model=model,
        page_bytes=page_bytes,
        works=works,
        infinite=infinite,
        runs=runs,
        distances=found,
        points=curve.points(found, [it.capacity // shape.unit_bytes for it in runs]),
        knee=curve.knee(found),
        busiest=infinite_core.busiest(result.PREFIXES),
        without_radix=without_radix,
    )


def _cached(works: list[work.Work], outcome: caches.Outcome, grain: int) -> int:
    return sum(work.cached_tokens(it, matched, grain) for it, matched in zip(works, outcome.matched, strict=True))


def _measure(works: list[work.Work], progress: Progress) -> distances.Distances:
    with _task(progress, "reuse distances", len(works)) as step:
        return distances.measure(works, step)


def _make(works: list[work.Work], shape: caches.Shape, pages: int) -> Any:
    try:
        return caches.make(works, shape, pages)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _play(core: Any, works: list[work.Work], shape: caches.Shape, progress: Progress, label: str) -> caches.Outcome:
    with _task(progress, label, len(works)) as step:
        return caches.play(core, works, shape, step)


def _fastest(best: caches.Outcome | None, outcome: caches.Outcome) -> caches.Outcome:
    return outcome if best is None or outcome.seconds < best.seconds else best


def _chosen(found: distances.Distances, works: list[work.Work], shape: caches.Shape, infinite: Any) -> list[int]:
    """Bytes of an eighth, a quarter, a half and all of the largest reuse distance, as far as the longest request fits.

    Args:
        infinite: a cache that holds the whole trace. Capacities are of pages, a part of which is empty: as much as of
            that one's.
    """
    largest = found.largest or found.distinct
    longest = max(len(it.units) for it in works)
    units = sorted({max(largest // part, longest) for part in (8, 4, 2, 1)})
    tree_tokens, held_pages = caches.held(infinite)
    # A request alone takes its own pages, whatever they are filled to on the average.
    least = Geometry(shape.page_bytes, shape.unit_bytes).pages_for(longest)
    pages = {max(-(-it * held_pages // tree_tokens), least) for it in units}
    # A request that goes on in a page of another has that page copied: both are there for a while.
    return sorted((it + 1) * shape.page_bytes for it in pages)


def _model(settings: Settings) -> sizes.Model:
    if settings.token_bytes is not None:
        model = sizes.Model(f"{settings.token_bytes:,} bytes a token", settings.token_bytes)
    else:
        model = sizes.model(settings.model, settings.kv_dtype)
    if model.token_bytes * settings.grain > sizes.LARGEST_BYTES:
        raise UsageError(f"a token, or a block by --grain, would have more than {sizes.LARGEST_BYTES:,} bytes")
    return model


def _page_bytes(text: str) -> int:
    try:
        page_bytes = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--page-bytes: {error}") from None
    if not 0 < page_bytes <= sizes.LARGEST_BYTES:
        raise UsageError(f"--page-bytes {text}: a page has from 1 to {sizes.LARGEST_BYTES:,} bytes")
    return page_bytes


def _capacity(text: str, token_bytes: int, page_bytes: int) -> int:
    capacity = sizes.parse_capacity(text, token_bytes)
    if capacity > sizes.LARGEST_BYTES:
        raise UsageError(f"--capacity {text}: more than {sizes.LARGEST_BYTES:,} bytes")
    if capacity < max(page_bytes, token_bytes):
        raise UsageError(
            f"--capacity {text}: {capacity:,} bytes are less than one page of {page_bytes:,} bytes or one token of "
            f"{token_bytes:,}"
        )
    return capacity


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def _task(progress: Progress, label: str, total: int) -> Iterator[caches.Progress]:
    task = progress.add_task(label, total=total)
    yield lambda done: progress.advance(task, done)
    progress.remove_task(task)
