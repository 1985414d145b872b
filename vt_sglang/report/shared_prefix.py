# SPDX-License-Identifier: Apache-2.0
"""Figures of bench/shared_prefix.py: what SGLang's own benchmark reports beside what the server counted."""

from collections.abc import Iterator, Sequence

from vt_sglang.report.about import source
from vt_sglang.report.load import Run
from vt_sglang.report.looks import looks
from vt_sglang.report.model import Axis, Figure, Group, Groups, Table, columns

TOKENS = ("prompt_tokens", "cached_tokens")
COUNTERS = {
    "benchmark": "bench_serving",
    "sglang_metrics": "SGLang's /metrics",
    "vtensor_metrics": "vtensor's /metrics",
}


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    found = {
        f"{run.label}: {shown}" if len(runs) > 1 else shown: run.data["figures"][key]
        for run in runs
        for key, shown in COUNTERS.items()
    }
    of_names = looks(list(found))
    groups = [
        Group(name, of_names[name], tuple(counted[it].number() for it in TOKENS), form=",.0f")
        for name, counted in found.items()
    ]
    yield Figure(
        name="shared-prefix-tokens",
        title="Tokens as three counted them (they should be equal)",
        notes=(
            "Requests in groups that share a system prompt: `--dataset-name generated-shared-prefix --cache-report`.",
        ),
        plot=Groups(tuple(it.replace("_", " ") for it in TOKENS), Axis("tokens", form=",d"), tuple(groups)),
        table=Table(
            columns("counted by", *((it.replace("_", " "), ",.0f") for it in TOKENS)),
            tuple((name, *(counted[it].number() for it in TOKENS)) for name, counted in found.items()),
        ),
        source=source(runs),
    )
