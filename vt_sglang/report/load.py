# SPDX-License-Identifier: Apache-2.0
"""Reading result files, and telling of what kind they are."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vt_sglang.report.fields import Field, FieldError

SCHEMA = 1
"""The newest meaning of the fields that is known here."""

KINDS = {
    "replay": "vt-sglang replay",
    "chat": "vt-sglang chat",
    "serve": "bench/serve.py",
    "decode": "bench/kernels.py decode",
    "prefill": "bench/kernels.py prefill",
    "shared": "bench/kernels.py shared",
    "tree": "bench/tree.py",
    "shared-prefix": "bench/shared_prefix.py",
}
"""What can be shown, by what makes it, in the order in which it is shown."""

_ROWS = {
    "prefill": ("gigaflop",),
    "shared": ("floor_us", "hopper_us", "plain_us"),
    "decode": ("floor_us", "shape"),
    "tree": ("operation",),
}
"""Fields by which the rows of a benchmark are told apart; the first that fits."""


class ReportError(Exception):
    """Files of which no report can be made. The message names the file."""


@dataclass(frozen=True)
class Run:
    label: str
    """Unique among the runs of a report."""
    path: Path
    kind: str
    """A key of KINDS."""
    data: Field


def load(paths: Sequence[Path]) -> list[Run]:
    """Read all of them. Raises ReportError at the first that is not a result."""
    found = [_read(path) for path in paths]
    names = _labels(paths)
    return [Run(name, path, kind, data) for name, path, (kind, data) in zip(names, paths, found, strict=True)]


def _read(path: Path) -> tuple[str, Field]:
    try:
        value = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise ReportError(f"{path}: not JSON: {error}") from None
    data = Field(value)
    try:
        kind = _kind(data)
        schema = data.maybe("schema")
    except FieldError as error:
        raise ReportError(f"{path}: {error}") from None
    if schema is not None and schema > SCHEMA:
        raise ReportError(f"{path}: schema {schema:g} is newer than this vt-sglang, which reads up to {SCHEMA}")
    return kind, data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _kind(data: Field) -> str:
    """By the field `kind`, or by what else a result holds."""
    named = data.get("kind")
    if named is not None:
        if named.text() not in KINDS:
            raise FieldError(f"kind {named.text()!r} is unknown; known are {', '.join(KINDS)}")
        return named.text()
    if data.has("servers") and data.has("workload"):
        return "chat"
    if data.has("trace") and data.has("capacities"):
        return "replay"
    results = data.get("results")
    if results is not None and results.has("loads") and results.has("runs"):
        return "serve"
    if results is not None and isinstance(results.value, list) and results.value:
        row = results.list()[0]
        for kind, keys in _ROWS.items():
            if all(row.has(key) for key in keys):
                return kind
    makers = "; ".join(dict.fromkeys(maker.split(".py ")[0] + ".py" * (".py " in maker) for maker in KINDS.values()))
    raise FieldError(f"not a result of any of: {makers}")


def _labels(paths: Sequence[Path]) -> list[str]:
    """The names of the files without `.json`; with their folder, or a number, where they are the same."""
    names = [path.stem for path in paths]
    for longer in (lambda path, name, _: f"{path.resolve().parent.name}/{name}", lambda _, name, i: f"{name} {i + 1}"):
        count = Counter(names)
        names = [
            longer(path, name, index) if count[name] > 1 else name
            for index, (path, name) in enumerate(zip(paths, names, strict=True))
        ]
    return names
