# SPDX-License-Identifier: Apache-2.0
"""From runs to all that a report shows."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vt_sglang.report import chat, kernels, replay, serve, shared_prefix, tree
from vt_sglang.report.about import about
from vt_sglang.report.fields import FieldError
from vt_sglang.report.load import KINDS, ReportError, Run
from vt_sglang.report.model import Figure, Section

TITLES = {
    "replay": "Replayed traces",
    "chat": "Dialogues",
    "serve": "Serving",
    "decode": "Decode attention",
    "prefill": "Prefill attention",
    "shared": "Decode attention of requests that share",
    "tree": "Radix tree",
    "shared-prefix": "Cached tokens, counted by all",
}

_FIGURES: dict[str, Callable[[Sequence[Run]], Iterator[Figure]]] = {
    "replay": replay.figures,
    "chat": chat.figures,
    "serve": serve.figures,
    "decode": kernels.decode,
    "prefill": kernels.prefill,
    "shared": kernels.shared,
    "tree": tree.figures,
    "shared-prefix": shared_prefix.figures,
}

_VERDICTS: dict[str, Callable[[Run], Iterator[str]]] = {"chat": chat.verdicts, "replay": replay.verdicts}

_BROKEN = (FieldError, ArithmeticError, ValueError)


def sections(runs: Sequence[Run]) -> list[Section]:
    """A section a kind. Raises ReportError, with file and field, if a run lacks what its kind has."""
    found = []
    for kind in KINDS:
        of_kind = [run for run in runs if run.kind == kind]
        if of_kind:
            found.append(_section(kind, of_kind))
    return found


def _section(kind: str, runs: Sequence[Run]) -> Section:
    try:
        return _made(kind, runs)
    except _BROKEN:
        for run in runs:  # which of them is it?
            try:
                _made(kind, [run])
            except _BROKEN as error:
                raise ReportError(f"{run.path}: not a whole result of {KINDS[kind]}: {error}") from None
        raise


def _made(kind: str, runs: Sequence[Run]) -> Section:
    said = _VERDICTS.get(kind)
    abouts = [about(run, tuple(said(run)) if said else ()) for run in runs]
    if kind == "replay":
        pairs = zip(abouts, runs, strict=True)
        abouts = [replace(it, facts=(*it.facts, *replay.facts(run))) for it, run in pairs]
    figures = [replace(figure, name=_slug(figure.name)) for figure in _FIGURES[kind](runs)]
    return Section(kind, TITLES[kind], tuple(abouts), tuple(figures))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
