# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/performance.md anew from the JSON files in bench/results.

    python bench/tables.py [--check]

A table stands between `<!-- NAME -->` and `<!-- end -->`, NAME being that of the result it is made from. `--check`
changes nothing and exits with 1 if a table is not what the results say.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/performance.md"
RESULTS = ROOT / "bench/results"

_PLACE = re.compile(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _where(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    machine = result["machine"]
    gpus = machine.get("gpus") or [machine.get("gpu")]
    names = [name for name in (*gpus, machine.get("cpu") or machine.get("processor")) if name]
    return f"`{result.get('command_line') or result['command']}`, {result['date'][:10]}, {names[0]}; {versions}.\n\n"


def _tree(result: dict[str, Any]) -> str:
    rows = [
        [
            row["operation"],
            f"{row['sglang_us']:,.1f}",
            f"{row['vtensor_us']:,.1f}",
            f"{row['ratio']:,.0f}",
            f"{row['target']:,}" if row["target"] else "",
            f"{row['floor_us']:,.1f}" if row["floor_us"] is not None else "",
        ]
        for row in result["results"]
    ]
    return _markdown(["operation", "SGLang, us", "vtensor, us", "times faster", "target", "floor, us"], rows)


def _chat(result: dict[str, Any]) -> str:
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("requests", lambda it: f"{it['summary']['requests']:,}"),
        ("prompt tokens", lambda it: f"{it['summary']['prompt_tokens']:,}"),
        ("cached tokens", lambda it: f"{it['summary']['cached_tokens']:,}"),
        ("hit rate", lambda it: f"{it['summary']['hit_rate']:.1%}"),
        (
            "TTFT p50 / p99, ms",
            lambda it: f"{it['summary']['ttft_p50_ms']:.1f} / {it['summary']['ttft_p99_ms']:.1f}",
        ),
        (
            "inter-token p50 / p99, ms",
            lambda it: f"{it['summary']['inter_token_p50_ms']:.2f} / {it['summary']['inter_token_p99_ms']:.2f}",
        ),
        ("output tokens/s", lambda it: f"{it['summary']['output_tokens_per_s']:,.1f}"),
        ("server start, s", lambda it: f"{it['start_s']:.1f}"),
    ]
    counters = [
        ("pages created", "pages_created"),
        ("pages aliased", "pages_aliased"),
        ("pages mapped", "pages_mapped"),
        ("pages unmapped", "pages_unmapped"),
        ("tails extended in place", "tails_extended"),
        ("tails copied", "tails_copied"),
    ]
    servers = result["servers"]
    rows = [[name, *(show(server) for server in servers)] for name, show in lines]
    for name, key in counters:
        values = [server["vtensor"] for server in servers]
        rows.append([name, *("" if value is None else f"{value['counters'][key]:,}" for value in values)])
    comparison = result["comparison"]
    same = "identical in all" if not comparison["differing"] else f"different in {comparison['differing']} of"
    cached = "every request" if comparison["cached_by_request"] else "total"
    text = _markdown(["", *(server["name"] for server in servers)], rows)
    return f"{text}\nOutputs {same} {comparison['requests']} requests; cached tokens at least stock's in {cached}.\n"


def _table(name: str) -> str:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    make = _tree if name == "tree" else _chat
    return f"<!-- {name} -->\n{_where(result)}{make(result)}<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = DOCUMENT.read_text()
    new = _PLACE.sub(lambda found: _table(found["name"]), old)
    if check and new != old:
        sys.exit("docs/performance.md is not what bench/results says: run python bench/tables.py")
    if new != old:
        DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
