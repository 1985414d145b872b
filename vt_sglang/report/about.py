# SPDX-License-Identifier: Apache-2.0
"""Where a run's figures come from."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.fields import Field
from vt_sglang.report.load import KINDS, Run
from vt_sglang.report.model import About


def about(run: Run, verdicts: Sequence[str] = ()) -> About:
    """File, date, command line, machine, versions and launch lines, as far as the result tells them."""
    return About(run.label, tuple(_facts(run)), tuple(verdicts))


def source(runs: Sequence[Run]) -> str:
    """Machine, versions and day of some runs in one line; what several have in common once."""
    parts: dict[str, None] = {}
    for run in runs:
        gpus, processor = _machine(run.data)
        versions = dict(_versions(run.data))
        named = (
            f"{name} {versions[key]}"
            for name, key in (("SGLang", "sglang"), ("vt-sglang", "vt-sglang"))
            if key in versions
        )
        date = run.data.get("date")
        for part in (
            *([gpus or processor] if gpus or processor else []),
            *named,
            *([date.text()[:10]] if date else []),
        ):
            parts[part] = None
    return ", ".join(parts)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    data = run.data
    yield "file", f"{run.path.name}, of {KINDS[run.kind]}"
    if date := data.get("date"):
        yield "date", date.text().replace("T", " ").replace("+00:00", " UTC")
    if command := data.get("command_line") or data.get("command"):
        yield "command", command.text()
    gpus, processor = _machine(data)
    if shown := ", ".join(it for it in (gpus, processor) if it):
        yield "machine", shown
    if versions := ", ".join(f"{name} {version}" for name, version in _versions(data)):
        yield "versions", versions
    if note := data.get("note"):
        yield "note", note.text()
    for name, line in _launches(run):
        yield f"launch line of {name}", line


def _machine(data: Field) -> tuple[str, str]:
    """Names of the GPUs, and of the processor with its cores; empty where unknown."""
    machine = data.get("machine")
    if machine is None:
        return "", ""
    gpu, processor, cores = machine.get("gpu"), machine.get("cpu") or machine.get("processor"), machine.get("cores")
    listed = machine.get("gpus")
    names = [gpu.text()] if gpu else [it.text() for it in listed.list()] if listed else []
    gpus = ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )
    shown = processor.text() if processor else ""
    return gpus, f"{shown}, {cores.number():g} cores" if shown and cores else shown


def _versions(data: Field) -> list[tuple[str, str]]:
    versions = data.get("versions")
    return [(name, version.text()) for name, version in versions.items()] if versions else []


def _launches(run: Run) -> Iterator[tuple[str, str]]:
    if run.kind == "chat":
        sides = run.data["servers"]
    elif run.kind == "serve":
        sides = run.data["results"]["sides"]
    else:
        return
    for side in sides.list():
        words = [word.text() for word in side["command"].list()]
        environment = side.get("environment")
        variables = [f"{name}={value.text()}" for name, value in environment.items()] if environment else []
        yield side["name"].text(), " ".join([*variables, *words])
